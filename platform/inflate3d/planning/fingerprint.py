"""The fingerprint of a dataset: what a plan must know of its cases, measured on some of them."""

# Triples are (D, H, W), spacing (z, y, x) in mm.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from inflate3d.contracts import AbstractDataset, DatasetCard
from inflate3d.data.shards.glimpse import RawGlimpse
from inflate3d.data.shards.statistics import summarise_records
from inflate3d.sample import Spacing, Triple

MOST_CASES = 40


@dataclass(frozen=True)
class Fingerprint:
    """What was found. shapes_DHW, spacings_mm: of each training case that was read; of videos frames, height, width and
    seconds a frame. intensity: medians over cases, {} where none is measured. targets: of each, what its type tells.
    """

    card: DatasetCard
    splits: Mapping[str, int]
    shapes_DHW: tuple[Triple, ...]
    spacings_mm: tuple[Spacing, ...]
    intensity: Mapping[str, float]
    targets: Mapping[str, Mapping[str, Any]]

    @property
    def median_shape(self) -> Triple:
        """The median of each axis."""
        return cast(Triple, tuple(int(n) for n in np.median(self.shapes_DHW, axis=0)))

    @property
    def median_spacing_mm(self) -> Spacing:
        """The median of each axis."""
        return cast(Spacing, tuple(float(f"{v:.6g}") for v in np.median(self.spacings_mm, axis=0)))


def measure(dataset: AbstractDataset, *, most_cases: int = MOST_CASES) -> Fingerprint:
    """Read up to `most_cases` training cases, evenly spaced, as a build would.

    InputError where there are none, or for one that a build would refuse.
    """
    glimpse = RawGlimpse(dataset, most_cases, split="train")
    records = [case.record for case in glimpse.cases()]
    told = summarise_records(records, glimpse.card)
    return Fingerprint(
        card=glimpse.card,
        splits=glimpse.splits,
        shapes_DHW=tuple(tuple(record["shape"][1:]) for record in records),  # type: ignore[misc]
        spacings_mm=tuple(tuple(record["spacing_mm"]) for record in records),  # type: ignore[misc]
        intensity=told.get("intensity", {}),
        targets=told["targets"],
    )
