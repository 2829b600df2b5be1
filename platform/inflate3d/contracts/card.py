"""The card: what people must know of a dataset before they train on it or publish what they trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from inflate3d.contracts.target import AbstractTarget
from inflate3d.errors import InputError, unknown_name
from inflate3d.sample import Spacing

UNSTATED_MEDIA = "volume"
"""What a publication takes that does not state its medium, as those of nets built by hand."""
# Targets that are arrays become members of their own in a shard, beside these.
_TAKEN = ("image", "video", "json")
_MEMBER = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True)
class Intensity:
    """How stored voxel values become the floats that a net sees.

    mode "window": clip to `window` = (low, high), scale to 0..1, then (x - mean) / std per channel.
    mode "zscore": subtract the volume's own mean and divide by its own standard deviation, per channel.
    """

    mode: Literal["window", "zscore"] = "window"
    window: tuple[float, float] = (0.0, 255.0)
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)


@dataclass(frozen=True)
class InputSpec:
    """What the stored arrays hold: channels in order, voxel spacing (z, y, x), orientation and intensity.

    spacing_mm None: volumes keep their own spacing. orientation "RAS" means that W grows to the patient's Right,
    H to Anterior, D to Superior (nibabel's axis codes of (x, y, z) = (W, H, D)); None: no anatomy (video, voxel grids).
    """

    channels: tuple[str, ...] = ("image",)
    spacing_mm: Spacing | None = None
    orientation: str | None = None
    intensity: Intensity = field(default_factory=Intensity)


@dataclass(frozen=True)
class DatasetCard:
    """What a dataset is: its medium, its targets by name (none: unlabelled), its input, and what may be done with it.

    licence: SPDX identifier where there is one, else the words of the source. commercial_use: None means unknown.
    """

    name: str
    media: str  # a plug-in of inflate3d/media: what one sample is
    title: str
    modality: str  # "rgb", "ct", "mri", "mask", ...: chooses the stem
    url: str
    licence: str
    commercial_use: bool | None
    weights_may_be_published: bool
    citation: str
    targets: Mapping[str, AbstractTarget] = field(default_factory=dict)
    input: InputSpec = field(default_factory=InputSpec)

    def __post_init__(self) -> None:
        for name, target in self.targets.items():
            if name in _TAKEN or (target.per_voxel and not _MEMBER.fullmatch(name)):
                raise InputError(
                    f"{self.name}: no target can be called {name!r}; allowed: not {', '.join(_TAKEN)}, and for arrays "
                    "small letters, digits and '_'"
                )

    def target(self, name: str) -> AbstractTarget:
        """Return one target. InputError with close names if there is none of that name."""
        if name not in self.targets:
            raise unknown_name("target", name, self.targets, where=self.name)
        return self.targets[name]

    def restated(self, targets: Mapping[str, Any], *, where: str) -> DatasetCard:
        """Return the card with what a config says otherwise of its targets: {mask: {annotated: [liver]}}.

        `names` may be others, and more at the end: classes that were looked for and occur nowhere. InputError begins
        with `where` and names an unknown target or field, a list that is empty or none, and names that are missing.
        """
        found = dict(self.targets)
        if not isinstance(targets, Mapping):
            raise InputError(f"{where} is {targets!r}; expected targets by name: {', '.join(found)}")
        for name, changes in targets.items():
            if name not in found:
                raise unknown_name("target", name, found, where=where)
            found[name] = _restated(found[name], changes, where=f"{where}.{name}")
        return replace(self, targets=found)

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain JSON values."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        targets = {name: target.to_dict() for name, target in self.targets.items()}
        return {**plain, "targets": targets, "input": asdict(self.input)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DatasetCard:
        """Read a card back from JSON values; unknown keys are refused with an InputError."""
        raw = from_first_format(data) if "kind" in data else dict(data)
        known = {f.name for f in fields(cls)}
        if extra := sorted(set(raw) - known):
            raise InputError(f"dataset card: unknown keys {extra}; a newer version wrote it? Known: {sorted(known)}")
        raw["targets"] = {
            name: AbstractTarget.from_dict(target, where=f"dataset card: targets.{name}")
            for name, target in dict(raw.get("targets", {})).items()
        }
        raw["input"] = _input_of(raw.get("input", {}))
        return cls(**raw)


def _restated(target: AbstractTarget, changes: Any, *, where: str) -> AbstractTarget:
    """Return a target with other fields."""
    stated = {f.name: getattr(target, f.name) for f in fields(target)}
    if not isinstance(changes, Mapping):
        raise InputError(f"{where} is {changes!r}; expected fields of the target: {', '.join(sorted(stated))}")
    for key, value in changes.items():
        if key not in stated:
            raise unknown_name("field", key, stated, where=where)
        if isinstance(stated[key], tuple) and not (value and isinstance(value, list | tuple)):
            raise InputError(f"{where}.{key} is {value!r}; expected a list that names one at least")
    found = AbstractTarget.from_dict({**target.to_dict(), **changes}, where=where)
    if len(found.names) < len(target.names):
        raise InputError(
            f"{where}.names has {len(found.names)} names; the shards hold {len(target.names)} classes: "
            f"{', '.join(target.names)}. Name each; what was not looked for is left out of `annotated`"
        )
    return found


def _input_of(data: Mapping[str, Any]) -> InputSpec:
    spec: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "intensity"}
    intensity: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in dict(data.get("intensity", {})).items()
    }
    return InputSpec(**spec, intensity=Intensity(**intensity))


# Cards of shards (format 1) and publications (format 1) named one of three kinds and its classes.
_FIRST_FORMAT = {
    "video_classification": ("video", "label", "class_label"),
    "volume_classification": ("volume", "label", "class_label"),
    "volume_segmentation": ("volume", "mask", "mask"),
}


def from_first_format(data: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
    """Return a description that names a `kind` and `classes` with media and targets in their place.

    What shards, publications and mappings of tars said first. InputError with close names for an unknown kind.
    """
    rest = {k: v for k, v in data.items() if k not in ("kind", "classes")}
    if data["kind"] not in _FIRST_FORMAT:
        raise unknown_name("kind", str(data["kind"]), _FIRST_FORMAT, where=where)
    media, name, target = _FIRST_FORMAT[data["kind"]]
    return {**rest, "media": media, "targets": {name: {"type": target, "names": list(data.get("classes", ()))}}}
