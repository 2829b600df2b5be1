"""What a dataset's training volumes were like, and where another volume is far outside of that."""

# D H W voxels along z y x.

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inflate3d.contracts import Intensity

_log = logging.getLogger("inflate3d")
MEASURED = ("p0.5", "median", "p99.5")
_FIELD_RATIO, _SPACING_RATIO = 2.0, 1.5  # past the lowest or highest
_LEVEL = 0.25  # of all that was seen, from the lowest p0.5 to the highest p99.5
_MOST_VOXELS = 100_000
_SHARES = dict(zip(MEASURED, ("0.5 %", "half", "99.5 %"), strict=True))
_Rows = tuple[tuple[float, ...], tuple[float, ...]]


def measure_intensity(image: np.ndarray) -> dict[str, float]:
    """Percentiles, mean and standard deviation of about 10^5 evenly spaced voxels over all channels."""
    flat = image.reshape(-1)
    some = flat[:: max(1, flat.size // _MOST_VOXELS)].astype(np.float64)
    low, middle, high = np.percentile(some, (0.5, 50, 99.5))
    values = {"p0.5": low, "median": middle, "p99.5": high, "mean": some.mean(), "std": some.std()}
    return {name: float(f"{value:.6g}") for name, value in values.items()}


@dataclass(frozen=True)
class Seen:
    """The lowest and the highest of each over `volumes` volumes, as they are read: turned and resampled.

    field_of_view_mm, spacing_mm: along (D, H, W). intensity: of the percentiles MEASURED of a volume's voxels, in
    stored units; where each volume has a z-score, in its own standard deviations from its own mean.
    """

    volumes: int
    field_of_view_mm: _Rows
    spacing_mm: _Rows
    intensity: _Rows

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]], intensity: Intensity) -> Seen | None:
        """Return what was seen, from the JSON members of training samples; None where these do not measure voxels."""
        facts = [_facts(record, intensity) for record in records if record.get("intensity")]
        return cls(len(facts), *(_rows(values) for values in zip(*facts, strict=True))) if facts else None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Seen:
        """Read back what `to_dict` gave."""
        field, spacing = (
            (tuple(data[name]["low"]), tuple(data[name]["high"])) for name in ("field_of_view_mm", "spacing_mm")
        )
        low, high = zip(*(data["intensity"][name] for name in MEASURED), strict=True)
        return cls(data["volumes"], field, spacing, (low, high))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: {"volumes", "field_of_view_mm": {"low", "high"}, ..., "intensity"}."""
        triples = {name: getattr(self, name) for name in ("field_of_view_mm", "spacing_mm")}
        rows = {name: {"low": list(low), "high": list(high)} for name, (low, high) in triples.items()}
        pairs = zip(MEASURED, *self.intensity, strict=True)
        return {"volumes": self.volumes, **rows, "intensity": {name: [low, high] for name, low, high in pairs}}

    def unlike(self, record: Mapping[str, Any], intensity: Intensity) -> list[str]:
        """Return in words where a volume is far outside of what was seen; its record is that of a shard.

        Far: twice the largest or half the smallest field of view, 1.5 times that of the spacing; for intensities a
        quarter of the whole range seen, beyond the lowest or the highest.
        """
        field, spacing, levels = _facts(record, intensity)
        told = []
        for what, values, (low, high), ratio in (
            ("field of view", field, self.field_of_view_mm, _FIELD_RATIO),
            ("spacing", spacing, self.spacing_mm, _SPACING_RATIO),
        ):
            if any(v > h * ratio or v < lo / ratio for v, lo, h in zip(values, low, high, strict=True)):
                told.append(f"its {what} (D x H x W) is {_mm(values)} mm, in training {_mm(low)} to {_mm(high)} mm")
        return told + self._unlike_levels(levels, intensity)

    def warn(self, record: Mapping[str, Any], intensity: Intensity, *, where: str, weights: str) -> None:
        """Log one warning with the numbers for a volume that is far outside of what was seen."""
        if told := self.unlike(record, intensity):
            _log.warning(
                "%s is unlike the %d volumes that %s was trained on, so the answer may mean nothing: %s",
                *(where, self.volumes, weights, "; ".join(told)),
            )

    def _unlike_levels(self, levels: Sequence[float], intensity: Intensity) -> list[str]:
        rows = list(zip(MEASURED, levels, *self.intensity, strict=True))
        room = _LEVEL * (self.intensity[1][-1] - self.intensity[0][0])
        unit = " of its own standard deviations from its mean" if intensity.mode == "zscore" else ""
        return [
            f"{_SHARES[name]} of its voxels lie below {value:.4g}{unit}, in training {low:.4g} to {high:.4g}"
            for name, value, low, high in rows
            if not low - room <= value <= high + room
        ]


def _facts(record: Mapping[str, Any], intensity: Intensity) -> tuple[list[float], list[float], list[float]]:
    """Return field of view and spacing in mm, and percentiles, of one sample's record."""
    spacing = [float(s) for s in record["spacing_mm"]]
    field = [n * s for n, s in zip(record["shape"][1:], spacing, strict=True)]
    measured = record["intensity"]
    levels = [float(measured[name]) for name in MEASURED]
    if intensity.mode == "zscore":
        levels = [(level - measured["mean"]) / (measured["std"] or 1.0) for level in levels]
    return field, spacing, levels


def _rows(values: Sequence[Sequence[float]]) -> _Rows:
    table = np.array(values)
    low, high = (tuple(float(f"{v:.6g}") for v in row) for row in (table.min(0), table.max(0)))
    return low, high


def _mm(values: Sequence[float]) -> str:
    return " x ".join(f"{v:.3g}" for v in values)
