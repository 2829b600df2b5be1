"""What a config may say of one sample of each medium: sizes, how it is cut, how a clip is taken.

These are the keys of `data.datasets.<name>.sample`. No torch here: the command checks them before it imports any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from inflate3d.contracts import DatasetCard, medium_named
from inflate3d.errors import InputError, unknown_name
from inflate3d.sample import IMAGE, Triple

_VIEW_KEYS = ("sample", "augment")


@dataclass(frozen=True)
class VolumeSample:
    """One of two ways to make samples of volumes, and of what is known of their voxels.

    Patches: `patch_size` (D, H, W); training cuts patches, evaluation gives whole volumes, padded to at least one
    patch, and answers in windows of that size. foreground: share of the patches that hold a voxel of a class drawn
    among the foreground classes of the first mask, where there is one; the others lie anywhere.
    Whole: crop or pad to `size` (training: random crop; evaluation: centre); null keeps the stored shape, which must
    then be one for all. resize: after that, interpolate to (D, H, W).
    """

    patch_size: Triple | None = None
    foreground: float = 0.33
    size: Triple | None = None
    resize: Triple | None = None

    def __post_init__(self) -> None:
        for name in ("patch_size", "size", "resize"):
            if getattr(self, name) is not None:
                _set(self, name, _triple(name, getattr(self, name)))
        _number("foreground", self.foreground, low=0, high=1)
        if self.patch_size is not None and (self.size is not None or self.resize is not None):
            raise InputError("patch_size cuts patches, size and resize take whole volumes; give one or the other")

    @property
    def input_size(self) -> Triple | None:
        """(D, H, W) that the net sees in training; None where only the shards know."""
        return self.patch_size or self.resize or self.size

    @property
    def window(self) -> Triple | None:
        """(D, H, W) of the windows in which evaluation answers for whole volumes; None: they go through whole."""
        return self.patch_size


@dataclass(frozen=True)
class VideoSample:
    """A clip of `num_frames` frames, `frame_interval` apart (training: anywhere; evaluation: from the middle).

    Frames are scaled so that the shorter side is `short_side` (default: 8/7 of crop_size, the 256 for 224 of the
    literature) and a square of `crop_size` is cut (training: anywhere; evaluation: centre). A clip that is too short
    repeats its last frame. gamma below 1 brightens dark videos. mean, std override the card's (three values or one).
    """

    num_frames: int
    crop_size: int
    frame_interval: int = 1
    short_side: int | None = None
    gamma: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("num_frames", "crop_size", "frame_interval"):
            _whole(name, getattr(self, name))
        if self.short_side is None:
            _set(self, "short_side", round(self.crop_size * 8 / 7))
        if _whole("short_side", self.short_side) < self.crop_size:
            raise InputError(f"short_side is {self.short_side}; it must be at least crop_size, {self.crop_size}")
        if self.gamma is not None:
            _number("gamma", self.gamma, low=0.01, high=100)
        for name in ("mean", "std"):
            if getattr(self, name) is not None:
                _set(self, name, _floats(name, getattr(self, name)))
        if self.std is not None and min(self.std) <= 0:
            raise InputError(f"std is {self.std}; every value must be above 0")

    @property
    def input_size(self) -> Triple | None:
        """(D, H, W) that the net sees."""
        return (self.num_frames, self.crop_size, self.crop_size)

    @property
    def window(self) -> Triple | None:
        """None: a clip goes through whole."""
        return None


def sample_options(card: DatasetCard, options: Mapping[str, Any], *, where: str = "sample") -> Any:
    """Return the checked options of a card's medium (see contracts.SampleOptions), as options_of does."""
    return options_of(card.media, options, where=where)


def options_of(media: str, options: Mapping[str, Any], *, where: str = "sample") -> Any:
    """Return the checked options of the medium of this name. InputError begins with `where` and names the key."""
    cls = medium_named(media).options
    known = {f.name: f for f in fields(cls)}
    for name in options:
        if name not in known:
            raise unknown_name("key", name, known, where=f"{where}.{name}")
    missing = [name for name, f in known.items() if f.default is MISSING and name not in options]
    if missing:
        raise InputError(f"{where}: {', '.join(missing)} missing; {media} needs it. Keys: {', '.join(known)}")
    try:
        return cls(**options)
    except InputError as fault:
        raise InputError(f"{where}: {fault}") from None


def view_options(
    card: DatasetCard,
    sample: Mapping[str, Any],
    views: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    where: str = "data",
) -> dict[str, Any]:
    """Return the checked options of each view by name, "image" first where it is among them.

    views: None or empty: "image" alone, as `sample` says; else {NAME: {sample: options that differ, augment: ...}}.
    where: the dataset's key path. InputError begins with that of the key.
    """
    if not views:
        return {IMAGE: sample_options(card, sample, where=f"{where}.sample")}
    if not isinstance(views, Mapping):
        raise InputError(f"{where}.views is {views!r}; expected {{NAME: {{sample: ..., augment: ...}}}}")
    found = {}
    for name in sorted(views, key=lambda n: n != IMAGE):  # a stable sort
        view, told = views[name], f"{where}.views.{name}"
        if not isinstance(view, Mapping) or not isinstance(view.get("sample", {}), Mapping):
            raise InputError(f"{told} is {view!r}; expected {{sample: {{...}}, augment: ...}}, or {{}}")
        for key in view:
            if key not in _VIEW_KEYS:
                raise unknown_name("key", str(key), _VIEW_KEYS, where=f"{told}.{key}")
        found[name] = sample_options(card, {**sample, **view.get("sample", {})}, where=f"{told}.sample")
    return found


def _set(options: Any, name: str, value: Any) -> None:
    object.__setattr__(options, name, value)  # the dataclass is frozen; this is its construction


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is {value!r}; expected a whole number above 0")
    return value


def _number(name: str, value: Any, *, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{name} is {value!r}; expected a number from {low} to {high}")


def _triple(name: str, value: Any) -> Triple:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise InputError(f"{name} is {value!r}; expected [D, H, W]")
    d, h, w = (_whole(name, v) for v in value)
    return (d, h, w)


def _floats(name: str, value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    if not values or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise InputError(f"{name} is {value!r}; expected one number, or one for each channel")
    return tuple(float(v) for v in values)
