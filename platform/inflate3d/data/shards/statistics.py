"""What a finished build measured: shapes, spacing, intensities and classes, from the samples' JSON members alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inflate3d.contracts import DatasetCard
from inflate3d.data.samples.record import stored_value
from inflate3d.data.samples.seen import Seen
from inflate3d.data.shards.manifest import Manifest
from inflate3d.data.shards.reader import ShardReader

_MOST_MEASURED = 10_000


def measure_shards(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Return statistics of the train split (of all samples if it is empty), from at most 10,000 evenly spaced ones."""
    split = "train" if manifest.num_samples("train") else None
    return summarise_records(_records(ShardReader(folder, manifest, split)), manifest.card)


def summarise_records(records: Sequence[Mapping[str, Any]], card: DatasetCard) -> dict[str, Any]:
    """Return what a manifest tells of samples, from their JSON members, of which there is one at least.

    {"samples_measured", "shape": {"min", "median", "max"} of (C, D, H, W), "spacing_mm": likewise (z, y, x),
    "intensity": medians over volumes of p0.5, median, p99.5, mean and std, "seen": their ranges (Seen), "targets": of
    each, what its type tells}.
    """
    statistics: dict[str, Any] = {"samples_measured": len(records)}
    for name in ("shape", "spacing_mm"):
        values = np.array([r[name] for r in records], float)
        rows = {"min": values.min(0), "median": np.median(values, 0), "max": values.max(0)}
        statistics[name] = {row: [float(f"{v:.6g}") for v in numbers] for row, numbers in rows.items()}
    if "intensity" in records[0]:
        names = records[0]["intensity"]
        statistics["intensity"] = {n: float(np.median([r["intensity"][n] for r in records])) for n in names}
    if (seen := Seen.of(records, card.input.intensity)) is not None:
        statistics["seen"] = seen.to_dict()
    statistics["targets"] = {
        name: target.summarise([_told(record, name, per_voxel=target.per_voxel) for record in records])
        for name, target in card.targets.items()
    }
    return statistics


def _records(reader: ShardReader) -> list[dict[str, Any]]:
    starts = np.cumsum([0, *(e.samples for e in reader.entries)])
    chosen = np.unique(np.linspace(0, len(reader) - 1, min(len(reader), _MOST_MEASURED)).astype(np.int64))
    shards = np.searchsorted(starts, chosen, side="right") - 1
    return [reader.record(int(s), int(g - starts[s])) for s, g in zip(shards, chosen, strict=True)]


def _told(record: Mapping[str, Any], name: str, *, per_voxel: bool) -> Any:
    return record.get("measured", {}).get(name) if per_voxel else stored_value(record, name)
