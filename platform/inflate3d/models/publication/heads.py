"""Published heads: rebuilt from what config.json says of them, by the plug-in of their type, with their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from inflate3d.contracts import AbstractTarget, FeatureInfo
from inflate3d.errors import InputError, unknown_name
from inflate3d.models.publication.allocation import build_within
from inflate3d.models.publication.integrity import plain_file
from inflate3d.models.publication.layout import HEADS
from inflate3d.models.publication.tensor_file import read_header, read_tensors
from inflate3d.nn import Head
from inflate3d.nn.heads import head_type

_ROOM = 2**22  # numbers that a head may hold beyond twice those of its file


def entry_of(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what a config says of one head. InputError with close names."""
    heads = config.get("heads", {})
    if name not in heads:
        raise unknown_name("head", name, heads, see="the directory's README.md")
    return cast(dict[str, Any], heads[name])


def target_of(entry: Mapping[str, Any]) -> AbstractTarget | None:
    """Return what a head answers for; None where that has no target. InputError where its type is not installed."""
    described = entry.get("target")
    return None if described is None else AbstractTarget.from_dict(described, where="the head's target")


def label_names_of(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what the indices in label files of a head's dataset mean, by names of its target: unless stated, in order.

    InputError for a name that is none of the target's.
    """
    target = target_of(entry)
    names = () if target is None else target.names
    for name in entry.get("label_names", ()):
        if name not in names:
            raise unknown_name("class", name, names, where="the head's label_names")
    return tuple(entry.get("label_names", names))


def is_per_voxel(entry: Mapping[str, Any]) -> bool:
    """Whether a head answers for every voxel: what create_segmenter loads."""
    target = target_of(entry)
    return target is not None and target.per_voxel


def head_tensors(folder: Path, name: str, entry: Mapping[str, Any], stated: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors of one published head, under its module's own keys; several heads may be over the same."""
    if HEADS not in stated:
        raise InputError(f"{folder}: SHA256SUMS does not list {HEADS}; publish or download the directory again")
    header = read_header(plain_file(folder, HEADS))
    prefix = f"{entry.get('tensors', name)}."
    tensors = read_tensors(folder / HEADS, [key for key in header if key.startswith(prefix)])
    return {key.removeprefix(prefix): value for key, value in tensors.items()}


def load_head(
    folder: Path,
    name: str,
    entry: Mapping[str, Any],
    feature_info: FeatureInfo,
    stated: Mapping[str, str],
    *,
    num_classes: int | None = None,
) -> Head:
    """Return a published head with its weights; num_classes: another number, with a fresh last layer.

    InputError where no package with its type is installed, or its tensors do not fit.
    """
    cls = head_type(entry["type"], where=f"{folder}: head {name!r}")
    described = dict(entry["head"])
    is_fresh = num_classes is not None and described.get("num_classes") != num_classes
    if is_fresh:
        described["num_classes"] = num_classes
    state = head_tensors(folder, name, entry, stated)
    most = 2 * sum(value.numel() for value in state.values()) + _ROOM
    try:
        head = cast(Head, build_within(lambda: cls.rebuild(described, feature_info), most, where=f"{folder}: {name!r}"))
        if is_fresh:
            own = {k: v for k, v in head.state_dict().items() if k.startswith(cls.last_layer)}
            state = {**state, **own}
        head.load_state_dict(state)
    except (RuntimeError, TypeError, ValueError) as fault:
        if isinstance(fault, InputError):
            raise
        raise InputError(f"{folder}: head {name!r} does not fit the net: {str(fault)[:200]}") from fault
    return head
