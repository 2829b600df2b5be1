"""Regions: sets of labels that may lie in each other, as a tumor's core in the whole tumor; each is told by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inflate3d.errors import InputError, unknown_name

_KEYS = ("name", "labels", "written")


@dataclass(frozen=True)
class Region:
    """labels: the names that it is made of. written: the one of them that a label map has where the region is told.

    Regions are written in their order, a later one over those before: nnU-Net's regions_class_order.
    """

    name: str
    labels: tuple[str, ...]
    written: str


def as_regions(given: Iterable[Any], allowed: Sequence[str]) -> tuple[Region, ...]:
    """Return regions given as Region or as {name, labels, written}; `allowed`: the labels that they may be made of.

    `written` may be left out where a region has one label alone that no later region holds. InputError for what is no
    region, for two of one name, and where the regions of a label are not those of what is written for it.
    """
    plain = [_plain(region, allowed) for region in given]
    later: set[str] = set()
    found: list[Region] = []
    for name, labels, written in reversed(plain):
        own = [label for label in labels if label not in later]
        if written is None and len(own) != 1:
            raise InputError(
                f"region {name!r}: {len(own)} of its labels are in no later region ({', '.join(own) or 'none'}), so "
                f"which one is written for it? Say written: one of {', '.join(labels)}; large regions come first"
            )
        found.append(Region(name, labels, own[0] if written is None else written))
        later.update(labels)
    regions = tuple(reversed(found))
    if len({region.name for region in regions}) < len(regions):
        raise InputError(f"regions {', '.join(region.name for region in regions)}: each needs a name of its own")
    for label in allowed:
        _check_written(label, regions)
    return regions


def _plain(region: Any, allowed: Sequence[str]) -> tuple[str, tuple[str, ...], str | None]:
    if isinstance(region, Region):
        region = vars(region)
    if not isinstance(region, Mapping) or "name" not in region or not isinstance(region.get("labels"), list | tuple):
        raise InputError(f"region {region!r}; expected {{name: NAME, labels: [LABEL, ...], written: LABEL}}")
    for key in region:
        if key not in _KEYS:
            raise unknown_name("key", str(key), _KEYS, where=f"region {region['name']!r}")
    name, labels = str(region["name"]), tuple(map(str, region["labels"]))
    for label in labels:
        if label not in allowed:
            raise unknown_name("label", label, allowed, where=f"region {name!r}")
    written = region.get("written")
    if not labels or (written is not None and written not in labels):
        raise InputError(f"region {name!r}: written is {written!r}; expected one of its labels: {', '.join(labels)}")
    return name, labels, written


def _check_written(label: str, regions: Sequence[Region]) -> None:
    """Refuse an order in which the regions of a voxel would not be read back from its written label."""
    own = [region for region in regions if label in region.labels]
    if not own:
        return
    written = own[-1].written
    if odd := [r.name for r in regions if (label in r.labels) != (written in r.labels)]:
        raise InputError(
            f"a voxel of {label!r} would be written as {written!r}, which is not in the same regions: {', '.join(odd)} "
            "would be lost or gained. Regions lie in each other, the largest first, each with a label of its own"
        )
