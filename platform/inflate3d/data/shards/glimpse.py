"""A glimpse of a set: its card, its splits, what was measured and a few cases, from raw files or from shards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inflate3d.contracts import SPLITS, AbstractDataset, DatasetCard, RawSample, Split
from inflate3d.data.samples.record import stored_value
from inflate3d.data.shards.manifest import MANIFEST_FILE, Manifest
from inflate3d.data.shards.members import byte_members, decode_members, encode_sample
from inflate3d.data.shards.reader import ShardReader
from inflate3d.errors import InputError
from inflate3d.remote.address import is_remote


@dataclass(frozen=True)
class StoredCase:
    """One case as shards hold it: what was read of it, its targets as they are stored, and its JSON member."""

    key: str
    split: str
    raw: RawSample
    record: Mapping[str, Any]


class Glimpse(ABC):
    """splits: cases of each. statistics: as a manifest's; None where nothing was measured yet."""

    card: DatasetCard
    splits: Mapping[str, int]
    statistics: Mapping[str, Any] | None = None

    @abstractmethod
    def cases(self) -> Iterator[StoredCase]:
        """Yield the cases that were chosen, evenly spaced over all. InputError for one that a build would refuse."""


class RawGlimpse(Glimpse):
    """Of raw files, read as a build would read and store them."""

    def __init__(self, dataset: AbstractDataset, count: int, *, split: Split | None = None) -> None:
        """Choose `count` cases, of one split alone where it is given. InputError if there are none."""
        self.card, self._dataset = dataset.card, dataset
        cases = dataset.cases()
        chosen = [case for case in cases if split in (None, case.split)]
        if not chosen:
            raise InputError(f"{self.card.name}: there are no {split + ' ' if split else ''}cases to look at")
        self._chosen = [chosen[i] for i in _evenly(len(chosen), count)]
        found = [case.split for case in cases]
        self.splits = {split: found.count(split) for split in SPLITS if split in found}

    def cases(self) -> Iterator[StoredCase]:
        """Read, and take each through its members."""
        for case in self._chosen:
            members = encode_sample(self._dataset.read(case), self.card, key=case.key, group=case.group)
            decoded = decode_members({suffix: memoryview(content) for suffix, content in members.items()})
            yield _stored(case.key, case.split, decoded, list(members), self.card)


class ShardGlimpse(Glimpse):
    """Of finished shards in a local folder."""

    def __init__(self, folder: str | Path, count: int) -> None:
        """Choose `count` samples. InputError where there are no shards, no samples, or where tars are remote."""
        manifest = local_manifest(folder)
        self.card, self.statistics, self._entries = manifest.card, manifest.statistics, manifest.shards
        self._reader = ShardReader(folder, manifest)
        if not len(self._reader):
            raise InputError(f"{folder}: there are no samples to draw")
        self._chosen = _evenly(len(self._reader), count)
        self.splits = {s: manifest.num_samples(s) for s in SPLITS if manifest.entries(s)}

    def cases(self) -> Iterator[StoredCase]:
        """Read each at its place."""
        starts = np.cumsum([0, *(entry.samples for entry in self._entries)])
        for n in self._chosen:
            shard = int(np.searchsorted(starts, n, side="right")) - 1
            members = self._reader.sample(shard, int(n - starts[shard]))
            suffixes = list(members.members)
            yield _stored(members.key, self._entries[shard].split, members.decode(), suffixes, self.card)


def local_manifest(folder: str | Path) -> Manifest:
    """Return the manifest of shards whose voxels can be looked at here. InputError where they are elsewhere."""
    manifest = None if is_remote(folder) else Manifest.load(folder)
    if manifest is None or is_remote(manifest.tars or ""):
        raise InputError(f"{folder}: its shards are not on this machine; copy them to a local folder")
    return manifest


def shard_folders(place: str) -> list[str]:
    """Return the folders of shards at a place: itself, or those in it, by name. InputError if there are none."""
    path = Path(place).expanduser()
    if is_remote(place) or (path / MANIFEST_FILE).is_file():
        return [place]
    found = sorted(str(file.parent) for file in path.glob(f"*/{MANIFEST_FILE}"))
    if not found:
        state = "nor do the folders in it" if path.is_dir() else "and is no folder"
        raise InputError(
            f"{place} holds no {MANIFEST_FILE}, {state}: no shards are finished there. "
            f"Build some: platform shards build DATASET --root RAW --output {path / 'DATASET'}; raw files "
            "are looked at by platform datasets preview DATASET --root RAW"
        )
    return found


def raw_sample(decoded: Mapping[str, Any], suffixes: Sequence[str], card: DatasetCard) -> RawSample:
    """Return a stored sample as it was read, its targets as they are stored; suffixes: of its members in the shard."""
    record = decoded["json"]
    targets = {n: decoded.get(n) if t.per_voxel else stored_value(record, n) for n, t in card.targets.items()}
    suffix = next((s for s in suffixes if s in byte_members()), "none")
    spacing_mm = tuple(record.get("spacing_mm") or (1.0, 1.0, 1.0))
    return RawSample(decoded.get("image"), decoded.get("video"), suffix, targets, spacing_mm=spacing_mm)  # type: ignore[arg-type]


def _stored(key: str, split: str, decoded: Mapping[str, Any], suffixes: Sequence[str], card: DatasetCard) -> StoredCase:
    return StoredCase(key, split, raw_sample(decoded, suffixes, card), decoded["json"])


def _evenly(total: int, count: int) -> list[int]:
    if count < 1:
        raise InputError(f"num_samples is {count}; give 1 or more")
    evenly: list[int] = np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()
    return evenly
