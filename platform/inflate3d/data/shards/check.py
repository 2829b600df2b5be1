"""Verifies shards against their manifest: every hash, every place in the tar, every array, mask and video."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from inflate3d.contracts import DatasetCard, RawSample
from inflate3d.data.samples.chunked import ChunkError
from inflate3d.data.samples.record import stored_value
from inflate3d.data.shards.findings import find_noticed, read_noticed
from inflate3d.data.shards.index import ShardIndex
from inflate3d.data.shards.manifest import Manifest, ShardEntry
from inflate3d.data.shards.members import byte_members, check_members, encode_sample
from inflate3d.data.shards.own_files import BESIDE, NOTICED_FILE
from inflate3d.data.shards.reader import RawMembers, ShardReader, read_index
from inflate3d.data.shards.survey import survey_shards
from inflate3d.data.shards.tar_index import index_tar
from inflate3d.data.shards.tar_mapping import TarMapping
from inflate3d.errors import InputError
from inflate3d.files import file_sha256
from inflate3d.remote.address import is_remote, shown
from inflate3d.remote.outcomes import Unreachable


def check_shards(folder: str | Path) -> list[str]:
    """Read everything once and return the faults found, each naming its file; [] if all is as it was written.

    InputError only if there is no manifest to check against.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    if manifest.mapping is not None:
        return list(_check_indexed(folder, manifest, TarMapping.from_dict(manifest.mapping)))
    reader = ShardReader(folder, manifest)
    faults = list(_check_names(folder, manifest))
    seen: dict[str, str] = {}
    for shard, entry in enumerate(manifest.shards):
        try:
            index = read_index(folder, entry)
            faults += _check_tar(folder / entry.file, entry, index)
        except (InputError, OSError) as fault:
            faults.append(str(fault))
            continue
        if len(index.samples) == entry.samples:  # else the manifest lies, perhaps by 10^15 samples
            faults += _check_samples(reader, shard, manifest.card)
        for key, _ in index.samples:
            if (other := seen.setdefault(key, entry.file)) != entry.file:
                faults.append(f"{entry.file}: key {key!r} is also in {other}")
    return faults or list(_check_noticed(folder, manifest))


def _check_noticed(folder: Path, manifest: Manifest) -> Iterator[str]:
    """What was noticed follows from the shards; there may be none, where an older version built them."""
    try:
        told = read_noticed(folder)
    except InputError as fault:
        yield str(fault)
        return
    if told is not None and told != find_noticed(folder, survey_shards(folder, manifest)):
        yield f"{folder / NOTICED_FILE}: is not what the shards say; write it again: platform shards report {folder}"


def check_sizes(folder: str | Path, manifest: Manifest) -> list[str]:
    """Return the local tars and indexes that are missing, and the tars of another size; reads none of them."""
    faults = []
    tars = manifest.tars or str(folder)
    for entry in manifest.shards:
        for path, size in ((Path(tars, entry.file), entry.bytes), (Path(folder, entry.index), None)):
            if is_remote(tars if size is not None else folder):
                continue
            if not path.is_file():
                faults.append(f"{path}: is missing")
            elif size is not None and path.stat().st_size != size:
                faults.append(f"{path}: {path.stat().st_size} bytes; the manifest states {size}")
    return faults


def _check_indexed(folder: Path, manifest: Manifest, mapping: TarMapping) -> Iterator[str]:
    """Index each tar again: an index follows from the tar and the mapping alone, so it must come out the same."""
    tars = manifest.tars or str(folder)
    for entry in manifest.shards:
        try:
            before, now = read_index(folder, entry), index_tar(tars, mapping, entry.file)
        except InputError as fault:
            yield str(fault)
            continue
        if now.sha256 != entry.sha256:
            yield f"{shown(tars, entry.file)}: differs from what was indexed (sha256)"
        elif now != before:
            yield f"{folder / entry.index}: is not what this version makes of the tar; index it again"


def _check_names(folder: Path, manifest: Manifest) -> Iterator[str]:
    listed = {*BESIDE} | {e.file for e in manifest.shards} | {e.index for e in manifest.shards}
    for path in sorted(folder.iterdir()):
        if path.name not in listed:
            yield f"{path}: is not in the manifest; remove it, or finish the build that left it"


def _check_tar(path: Path, entry: ShardEntry, index: ShardIndex) -> Iterator[str]:
    """Compare the tar, walked without the index, with the index."""
    if path.stat().st_size != entry.bytes or file_sha256(path) != entry.sha256:
        yield f"{path}: differs from what was written (sha256)"
    if (index.bytes, index.sha256) != (entry.bytes, entry.sha256):
        yield f"{path}: index and manifest state unlike sizes or hashes"
    if len(index.samples) != entry.samples:
        yield f"{path}: {len(index.samples)} samples in the index, {entry.samples} in the manifest"
    indexed = [(f"{key}.{m.suffix}", m.offset, m.size) for key, members in index.samples for m in members]
    try:
        with tarfile.open(path, "r:") as tar:
            found = [(info.name, info.offset_data, info.size) for info in tar]
    except tarfile.TarError as fault:
        yield f"{path}: not a readable tar ({fault})"
        return
    if found != indexed:
        first = next((f for f, i in zip(found, indexed, strict=False) if f != i), "the number of members")
        yield f"{path}: tar and index differ, first at {first}"


def _check_samples(reader: ShardReader, shard: int, card: DatasetCard) -> Iterator[str]:
    entry = reader.entries[shard]
    for i in range(entry.samples):
        try:
            _check_sample(reader.sample(shard, i), card)
        except (InputError, ChunkError, Unreachable) as fault:
            yield f"{entry.file}: {fault}"


def _check_sample(raw: RawMembers, card: DatasetCard) -> None:
    """Put the decoded sample through the checks that it passed when it was built."""
    sample = raw.decode()
    record = sample.get("json", {})
    check_members(raw.key, sample, card)
    targets = {
        name: _whole(sample[name]) if target.per_voxel else stored_value(record, name)
        for name, target in card.targets.items()
    }
    rest: dict[str, Any] = {name: sample.get(name) for name in set(byte_members().values())}
    rest |= {name: record.get(name) for name in ("spacing_mm", "affine")}
    suffix = next((s for s in raw.members if s in byte_members()), "none")
    built_from = RawSample(_whole(sample.get("image")), video_suffix=suffix, targets=targets, **rest)
    encode_sample(built_from, card, key=raw.key)


def _whole(array: Any) -> np.ndarray | None:
    """Return an array as it is, or every chunk of one, each checked."""
    return None if array is None else np.asarray(array)
