"""Every sample of a finished set in figures: sizes, spacings, intensities, hashes and targets, from its JSON members.

No voxel is read. What differs from what the others are, or is not as one expects, is found in these (findings.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inflate3d.contracts import DatasetCard, medium_of
from inflate3d.data.samples.record import stored_value
from inflate3d.data.shards.index import Member
from inflate3d.data.shards.manifest import Manifest
from inflate3d.data.shards.reader import ShardReader, read_index
from inflate3d.errors import InputError

INTENSITIES = ("p0.5", "median", "p99.5", "std")


@dataclass
class Survey:
    """N samples in the order of the shards; row n of each array is one of them.

    places: (shard, index in it). shape: (N, 4) of (C, D, H, W). spacing_mm: (N, 3) along D, H, W. intensity: (N, 4) by
    INTENSITIES. What a record does not state is NaN. images: hashes of what their image is stored as. told: by target,
    its stored value; of one per voxel what the build measured. noticed: {n: facts}, where readers told any.
    """

    manifest: Manifest
    keys: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    told: dict[str, list[Any]] = field(default_factory=dict)
    noticed: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    shape: np.ndarray = field(default_factory=lambda: np.empty((0, 4)))
    spacing_mm: np.ndarray = field(default_factory=lambda: np.empty((0, 3)))
    intensity: np.ndarray = field(default_factory=lambda: np.empty((0, len(INTENSITIES))))

    def __len__(self) -> int:
        return len(self.keys)


def survey_shards(folder: Path, manifest: Manifest) -> Survey:
    """Read every index and every JSON member of a set in a local folder. InputError where one is damaged."""
    survey = Survey(manifest, told={name: [] for name in manifest.card.targets})
    reader = ShardReader(folder, manifest)
    count = len(reader)
    survey.shape, survey.spacing_mm = np.full((count, 4), np.nan), np.full((count, 3), np.nan)
    survey.intensity = np.full((count, len(INTENSITIES)), np.nan)
    for shard, entry in enumerate(manifest.shards):
        for i, (key, members) in enumerate(read_index(folder, entry).samples):
            survey.images.append(_image_hash(members, manifest.card))
            survey.keys.append(key)
            survey.splits.append(entry.split)
            survey.places.append((shard, i))
            try:
                _note(survey, reader.record(shard, i))
            except (ValueError, TypeError, AttributeError) as fault:
                if isinstance(fault, InputError):
                    raise
                raise InputError(f"{entry.file}: {key}: its json is not what a build writes ({fault})") from fault
    return survey


def _note(survey: Survey, record: dict[str, Any]) -> None:
    """Take one sample's record. Raises ValueError, TypeError or AttributeError for one that no build writes."""
    n = len(survey.keys) - 1
    for name, rows in (("shape", survey.shape), ("spacing_mm", survey.spacing_mm)):
        if (values := record.get(name)) is not None:
            rows[n] = np.array(values, float).reshape(rows.shape[1])
    measured = record.get("intensity") or {}
    survey.intensity[n] = [measured.get(name, np.nan) for name in INTENSITIES]
    for name, target in survey.manifest.card.targets.items():
        value = record.get("measured", {}).get(name) if target.per_voxel else stored_value(record, name)
        survey.told[name].append(value)
    if facts := record.get("noticed"):
        survey.noticed[n] = [(str(kind), str(text)) for kind, text in facts]


def _image_hash(members: list[Member], card: DatasetCard) -> str:
    """Return the hashes of the members that hold the image; "" if there are none."""
    medium = medium_of(card)
    own = (m for m in members if m.suffix in medium.byte_members or m.suffix.partition(".")[0] in medium.array_members)
    return " ".join(sorted(f"{m.suffix}:{m.hash}" for m in own))
