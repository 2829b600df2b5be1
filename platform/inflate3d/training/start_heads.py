"""Heads that begin as published ones: `model.start_heads` names a head of the backbone's publication for one's own."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from inflate3d.contracts import AbstractTarget
from inflate3d.errors import InputError, unknown_name
from inflate3d.models import BackboneConfig
from inflate3d.models.publication.fetch import check_directory, published_folder
from inflate3d.models.publication.heads import head_tensors, target_of
from inflate3d.models.publication.schema import read_published_config
from inflate3d.nn import Head
from inflate3d.nn.heads import head_type
from inflate3d.training.assignment import PlacedHead

_log = logging.getLogger(__name__)


def take_published_heads(heads: Mapping[str, PlacedHead], wanted: Mapping[str, str], backbone: BackboneConfig) -> None:
    """Load published heads into those of these names. wanted: a head's own name to one of the publication.

    The last layer is taken where the classes have the same names in the same order, and stays fresh otherwise; the log
    tells which. InputError for an unknown name, a head of another type or shape, or a backbone that is not published.
    """
    _check_names(heads, wanted)
    for name, published in wanted.items():
        where = f"model.start_heads.{name}"
        folder = published_folder(backbone.name) if backbone.pretrained else None
        if folder is None:
            raise InputError(
                f"{where}: heads come with published weights, and model.backbone is {backbone.name!r} with pretrained "
                f"{str(backbone.pretrained).lower()}; name a publication and pretrained true, or leave start_heads out"
            )
        described = read_published_config(folder).get("heads", {})
        if published not in described:
            raise unknown_name("head", published, described, where=f"{where}: {backbone.name}")
        theirs = head_type(described[published]["type"], where=where)
        head, target = heads[name].module, target_of(described[published])
        if type(head) is not theirs:
            raise InputError(f"{where}: {published!r} is a {theirs.__name__}, the task's head a {type(head).__name__}")
        assert isinstance(head, Head)
        state = head_tensors(folder, published, described[published], check_directory(folder))
        own, same = head.state_dict(), _answers_alike(target, heads[name].target)
        taken = {key: value for key, value in state.items() if same or not key.startswith(theirs.last_layer)}
        odd = [key for key, value in taken.items() if key not in own or own[key].shape != value.shape]
        others = "" if target is None else f"its target is another ({target.describe()[:80]})"
        if odd or not taken:
            reason = f"{odd[0]} has another shape" if odd else others
            raise InputError(f"{where}: nothing can be taken of {published!r}: {reason}; leave it out")
        head.load_state_dict({**own, **taken})
        rest = "" if same else f"; {others}, so the last layer is fresh"
        _log.warning("%s: begins as %r of %s%s", where, published, backbone.name, rest)


def _check_names(heads: Mapping[str, PlacedHead], wanted: Mapping[str, str]) -> None:
    """Refuse names of no head, and two of one that datasets share."""
    begun: dict[int, str] = {}
    for name in wanted:
        if name not in heads:
            raise unknown_name("head", name, heads, where="model.start_heads")
        if (other := begun.setdefault(id(heads[name].module), name)) != name:
            raise InputError(f"model.start_heads.{name}: {other} and {name} share one head; name one of them")


def _answers_alike(one: AbstractTarget | None, other: AbstractTarget | None) -> bool:
    return type(one) is type(other) and (one is None or other is None or one.answers == other.answers)
