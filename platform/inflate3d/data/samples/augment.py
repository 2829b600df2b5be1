"""Augmentation from YAML: TorchIO transforms for volumes, torchvision's v2 transforms for video.

A list of transforms, applied in order, in a file (`augment: augment/ct.yaml`) or in the config itself:

    - {class_path: RandomFlip, init_args: {axes: [Left], flip_probability: 0.5}}

Axes: ours are (C, D, H, W), TorchIO's are (C, W, H, D); `swap_axes` is the one border between them. All draws come from
the sample's own seed: the generators of torch, NumPy and random are seeded for the call and put back after it.
"""

from __future__ import annotations

import importlib
import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inflate3d.document import read_any
from inflate3d.errors import InputError, unknown_name

AugmentSpec = str | Sequence[Mapping[str, Any]]


class VolumeAugment:
    """TorchIO transforms on an image and, moved along with it, its masks."""

    def __init__(self, spec: AugmentSpec, *, where: str = "augment") -> None:
        """Build the transforms. Raises InputError for an unknown file, transform or argument."""
        import torchio

        known = {name: getattr(torchio, name) for name in torchio.transforms.__all__}
        # TorchIO copies its input for each transform; here it is ours, made for this call.
        self.transforms = [_build(item, known, where, {"copy": False}) for item in read_spec(spec, where=where)]

    def __call__(
        self, image_CDHW: Tensor, masks: Mapping[str, Tensor], *, affine: np.ndarray, seed: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the augmented image and masks (D, H, W), by name.

        affine: 4x4, (W, H, D) voxel indices to RAS+ millimetres.
        """
        import torchio

        images: dict[str, Any] = {"image": torchio.ScalarImage(tensor=swap_axes(image_CDHW), affine=affine)}
        images |= {n: torchio.LabelMap(tensor=swap_axes(mask[None]), affine=affine) for n, mask in masks.items()}
        subject: Any = torchio.Subject(**images)
        with seeded(seed):
            for transform in self.transforms:
                subject = transform(subject)
        image = swap_axes(subject["image"].data).float()
        # Resampled labels come back as float.
        return image, {name: swap_axes(subject[name].data)[0].to(mask.dtype) for name, mask in masks.items()}


class VideoAugment:
    """torchvision v2 transforms on a clip; every frame gets the same draw."""

    def __init__(self, spec: AugmentSpec, *, where: str = "augment") -> None:
        """Build the transforms. Raises InputError for an unknown file, transform or argument."""
        from torchvision.transforms import v2

        known = {name: cls for name, cls in vars(v2).items() if inspect.isclass(cls)}
        self.where = where
        self.transforms = [_build(item, known, where, {}) for item in read_spec(spec, where=where)]

    def __call__(self, clip_TCHW: Tensor, *, seed: int) -> Tensor:
        """Return the augmented clip, (T, C, H, W) uint8 as it came."""
        with seeded(seed):
            for transform in self.transforms:
                clip_TCHW = transform(clip_TCHW)
        if clip_TCHW.dtype != torch.uint8:
            raise InputError(
                f"{self.where}: the clip became {clip_TCHW.dtype}; leave out ToDtype, Normalize and the like: "
                f"the card's intensity is applied after the augmentation"
            )
        return clip_TCHW


def swap_axes(array_CDHW: Tensor) -> Tensor:
    """Turn (C, D, H, W) into TorchIO's (C, W, H, D), or back: the permutation is its own inverse. A view."""
    return array_CDHW.permute(0, 3, 2, 1)


def read_spec(spec: AugmentSpec, *, where: str) -> list[Mapping[str, Any]]:
    """Return the transforms of a spec; a text names a YAML file: 1. from here  2. among the packaged configs."""
    items: Any = spec
    if isinstance(spec, str):
        path = Path(spec).expanduser()
        packaged = files("inflate3d.configs").joinpath(spec)
        if not path.is_file() and not packaged.is_file():
            raise unknown_name("augmentation", spec, _packaged(), where=where, see="platform configs list")
        with as_file(packaged) as own:
            try:
                items = read_any(path if path.is_file() else own)
            except InputError as fault:
                raise InputError(f"{where}: {fault}") from None
    if not isinstance(items, list | tuple):
        raise InputError(f"{where}: expected a list of {{class_path, init_args}}, got {type(items).__name__}")
    return list(items)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator, NumPy's global one and `random` inside the block; put them back after it."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


def _packaged() -> list[str]:
    with as_file(files("inflate3d.configs")) as folder:
        return [f"augment/{path.name}" for path in Path(folder, "augment").glob("*.yaml")]


def _build(item: Any, known: Mapping[str, type], where: str, defaults: Mapping[str, Any]) -> Any:
    """Build one transform, and those inside its arguments (OneOf, Compose, RandomApply)."""
    if not isinstance(item, Mapping) or not isinstance(item.get("class_path"), str) or set(item) - _ITEM_KEYS:
        raise InputError(f"{where}: expected {{class_path: NAME, init_args: {{...}}}}, got {item!r}")
    cls = _find(item["class_path"], known, where)
    arguments = {
        name: _nested(value, known, where, defaults) for name, value in dict(item.get("init_args") or {}).items()
    }
    where = f"{where}: {cls.__name__}"
    allowed = _argument_names(cls)
    for name in arguments:
        if name not in allowed:
            raise unknown_name("argument", name, allowed, where=where)
    try:
        return cls(**{name: v for name, v in defaults.items() if name in allowed}, **arguments)
    except (TypeError, ValueError, KeyError) as fault:
        raise InputError(f"{where}: {fault}") from fault


_ITEM_KEYS = {"class_path", "init_args"}


def _nested(value: Any, known: Mapping[str, type], where: str, defaults: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping) and "class_path" in value:
        return _build(value, known, where, defaults)
    if isinstance(value, list):
        return [_nested(v, known, where, defaults) for v in value]
    return value


def _find(class_path: str, known: Mapping[str, type], where: str) -> type:
    module, _, name = class_path.rpartition(".")
    if not module:
        if name not in known:
            raise unknown_name("transform", name, known, where=where)
        return known[name]
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as fault:
        raise InputError(f"{where}: no transform {class_path!r} ({fault})") from None


def _argument_names(cls: type) -> set[str]:
    """Names that a constructor takes; where it passes **kwargs on, those of the classes above it too."""
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters
        names |= {p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
            break
    return names - {"self"}
