"""Raw files to shards: WebDataset tars with an index beside each, and the manifest that describes them.

The bytes depend on the dataset and the limits alone: not on the number of workers, the clock, the user or how often
the build was interrupted. A shard is finished when its index is there: the tar is renamed into place first, the index
after. A build that is started again keeps every finished shard whose hash still holds and goes on with the rest.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import numpy as np

from inflate3d.contracts import SPLITS, AbstractDataset, Case, DatasetCard, medium_of
from inflate3d.data.raw.keys import KEY_RULE, is_key
from inflate3d.data.shards.build_progress import BuildProgress
from inflate3d.data.shards.findings import find_noticed, save_noticed
from inflate3d.data.shards.index import Member, ShardIndex, index_file, member_hash
from inflate3d.data.shards.manifest import MANIFEST_FILE, MANIFEST_FORMAT, Manifest, ShardEntry
from inflate3d.data.shards.own_files import remove_own_files, strange_files
from inflate3d.data.shards.parts import Part
from inflate3d.data.shards.read_ahead import Encoded, ReadAhead, Rejected
from inflate3d.data.shards.statistics import measure_shards
from inflate3d.data.shards.survey import survey_shards
from inflate3d.errors import InputError
from inflate3d.files import file_sha256, told_when_full

MIB = 2**20
_BLOCK, _RECORD = 512, 10240  # tar pads members to blocks and the file to records


@dataclass(frozen=True)
class ShardLimits:
    """A shard is closed by the sample that reaches either limit."""

    samples: int
    bytes: int


def build_shards(
    dataset: AbstractDataset,
    output: str | Path,
    *,
    max_samples_per_shard: int = 2048,
    max_bytes_per_shard: int = 512 * MIB,
    num_workers: int = 0,
    max_rejects: int = 0,
    progress: bool = True,
    cases: Sequence[Case] | None = None,
    part: Part | None = None,
    encode: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write a dataset (or only `cases` of it) as shards under `output` and return the manifest.

    part: only that part of the cases, into a folder of its own under `output`; merge_parts joins them. encode: how the
    medium encodes every sample anew, such as {"gop": 12} of videos; None keeps the files.

    Cases that raise InputError are left out and listed in the manifest with the reason; with more than `max_rejects`
    of them the build ends in an InputError that lists them, and writes no manifest. InputError as well: a folder that
    holds anything else, even shards of another build; two cases of one key; a group in two splits.
    """
    if min(max_samples_per_shard, max_bytes_per_shard) < 1 or min(num_workers, max_rejects) < 0:
        raise InputError("max_samples_per_shard and max_bytes_per_shard begin at 1, num_workers and max_rejects at 0")
    card = dataset.card
    encoding = None if encode is None else medium_of(card).encoding(encode, where=f"{card.name}: encode")
    cases = _checked_cases(list(dataset.cases() if cases is None else cases), card.name)
    limits = ShardLimits(max_samples_per_shard, max_bytes_per_shard)
    output = Path(output)
    digest = _build_digest(dataset, card, cases, limits, encoding)
    if part is not None:
        output, cases = part.folder(output), part.take(cases)
    with (
        locked_folder(output),
        ReadAhead(dataset, card, min(num_workers, len(cases) // 8), encoding) as ahead,
        BuildProgress(len(cases), progress) as bar,
    ):
        builder = _Builder(output, digest, limits, ahead, bar)
        builder.check_folder()
        for split in SPLITS:
            builder.build_split(split, [c for c in cases if c.split == split])
    if len(builder.rejects) > max_rejects:
        raise InputError(reject_message(card.name, builder.rejects, max_rejects))
    if not builder.entries and part is None:
        reasons = reject_message(card.name, builder.rejects, max_rejects)
        raise InputError(f"{card.name}: no case could be read\n{reasons}")
    return builder.finish(card)


class _Builder:
    """One run of a build: walks the splits, keeps what is finished and writes what is not."""

    def __init__(self, folder: Path, build: str, limits: ShardLimits, ahead: ReadAhead, bar: BuildProgress) -> None:
        self.folder, self.build, self.limits, self.ahead, self.bar = folder, build, limits, ahead, bar
        self.entries: list[ShardEntry] = []
        self.rejects: list[dict[str, str]] = []

    def check_folder(self) -> None:
        """Refuse a folder that holds files of others, or shards of another build."""
        if strange := strange_files(self.folder):
            raise InputError(
                f"{self.folder} holds something else ({', '.join(strange[:3])}); give an empty or new folder"
            )
        for path in sorted(self.folder.glob("*-000000.index.json")):
            if (index := _read_index(path)) is not None and index.build != self.build:
                raise InputError(
                    f"{self.folder} holds shards of another build: the card, the cases, their labels or the limits "
                    "were different. Remove the folder or give another"
                )

    def build_split(self, split: str, cases: list[Case]) -> None:
        """Keep or write the shards of one split in order."""
        position, number = 0, 0
        while position < len(cases):
            tar = self.folder / f"{split}-{number:06d}.tar"
            index = self._finished(tar, cases, position)
            if index is None:
                (self.folder / MANIFEST_FILE).unlink(missing_ok=True)  # it describes shards that now change
                index = _write_shard(
                    tar, self.ahead.start(cases, position), self.limits, self.build, position, self.bar
                )
            else:
                self.bar.advance(index.cases[1] - index.cases[0], 0)
            self.rejects += index.rejects
            position, number = index.cases[1], number + 1
            if index.samples:
                self.entries.append(shard_entry(tar.name, split, index))

    def finish(self, card: DatasetCard) -> Manifest:
        """Delete what an interrupted build left (temporary files, shards beyond the last), and describe the rest."""
        keep = {e.file for e in self.entries} | {e.index for e in self.entries}
        remove_own_files(self.folder, but=keep)
        manifest = Manifest(card, tuple(self.entries), tuple(self.rejects))
        if self.entries:
            manifest = replace(manifest, statistics=measure_shards(self.folder, manifest))
        save_noticed(self.folder, find_noticed(self.folder, survey_shards(self.folder, manifest)))
        manifest.save(self.folder)
        return manifest

    def _finished(self, tar: Path, cases: list[Case], start: int) -> ShardIndex | None:
        """Return the index of a shard that can stay: same build, same start, whole, and its rejects still rejected."""
        index = _read_index(tar.with_name(index_file(tar.name)))
        if index is None or (index.build, index.cases[0]) != (self.build, start) or not tar.is_file():
            return None
        if tar.stat().st_size != index.bytes or file_sha256(tar) != index.sha256:
            return None
        rejected = {r["key"] for r in index.rejects}
        again = [c for c in cases[slice(*index.cases)] if c.key in rejected]
        return None if any(isinstance(self.ahead.read(c), Encoded) for c in again) else index


def _write_shard(
    tar: Path, outcomes: Iterator[Encoded | Rejected], limits: ShardLimits, build: str, start: int, bar: BuildProgress
) -> ShardIndex:
    """Write one shard from the next outcomes, up to a limit; only its index makes it count. No samples: no file."""
    samples: list[tuple[str, list[Member]]] = []
    rejects: list[dict[str, str]] = []
    temporary = tar.with_name(f".tmp-{tar.name}")
    stop = start
    full = told_when_full(tar.parent, "Free some and run the same command again: finished shards are kept")
    with full, temporary.open("wb") as file:
        writer = _TarWriter(file)
        for outcome in outcomes:
            stop += 1
            if isinstance(outcome, Encoded):
                samples.append((outcome.key, [writer.add(outcome.key, s, c) for s, c in outcome.members.items()]))
            else:
                rejects.append({"key": outcome.key, "reason": outcome.reason})
            bar.advance(1, outcome.size)
            if len(samples) >= limits.samples or writer.offset >= limits.bytes:
                break
        writer.finish()
        os.fsync(file.fileno())
    index = ShardIndex(samples, writer.offset, writer.sha256.hexdigest(), build, (start, stop), tuple(rejects))
    if samples:
        temporary.replace(tar)
        index.save(tar.with_name(index_file(tar.name)))
    return index


class _TarWriter:
    """A tar whose bytes follow from its members alone (no clock, no user), and which knows where they lie."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.offset = 0
        self.sha256 = hashlib.sha256()

    def add(self, key: str, suffix: str, content: bytes) -> Member:
        """Append one member and return its place."""
        info = tarfile.TarInfo(f"{key}.{suffix}")
        info.size, info.mode = len(content), 0o644
        self._write(info.tobuf(tarfile.PAX_FORMAT))
        member = Member(suffix, self.offset, len(content), member_hash(content))
        self._write(content)
        self._write(bytes(-self.offset % _BLOCK))
        return member

    def finish(self) -> None:
        """Write the end-of-archive blocks."""
        self._write(bytes(2 * _BLOCK))
        self._write(bytes(-self.offset % _RECORD))

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self.sha256.update(content)
        self.offset += len(content)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Make the folder and hold it against a second build; the lock ends with the process, however that ends."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder for the shards")
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InputError(f"{folder}: another build is writing there; wait for it or stop it") from None
    finally:
        os.close(handle)


def _checked_cases(cases: list[Case], name: str) -> list[Case]:
    splits: dict[str, str] = {}
    for case in cases:
        if not is_key(case.key):
            raise InputError(f"{name}: case key {case.key!r}; allowed: {KEY_RULE}")
        if case.split not in SPLITS:
            raise InputError(f"{name}: case {case.key!r} has split {case.split!r}; allowed: {', '.join(SPLITS)}")
        if case.group is not None and splits.setdefault(case.group, case.split) != case.split:
            raise InputError(
                f"{name}: group {case.group!r} is in {splits[case.group]} and {case.split}; keep it in one"
            )
    doubled = [key for key, count in Counter(c.key for c in cases).items() if count > 1]
    if doubled:
        raise InputError(f"{name}: case keys must be unique; doubled: {', '.join(doubled[:5])}")
    return cases


def _build_digest(
    dataset: AbstractDataset,
    card: DatasetCard,
    cases: list[Case],
    limits: ShardLimits,
    encoding: dict[str, Any] | None,
) -> str:
    """Return what tells one build from another: card, the dataset's plain settings, cases with what they say, limits.

    Paths of this machine are no settings: a raw folder that has moved is the same.
    """
    plain = (str, int, float, bool, tuple, list, type(None))
    settings = {k: _said(v) for k, v in sorted(vars(dataset).items()) if not k.startswith("_") and isinstance(v, plain)}
    what = [MANIFEST_FORMAT, type(dataset).__qualname__, card.to_dict(), settings, limits.samples, limits.bytes]
    what += [] if encoding is None else [encoding]
    digest = hashlib.sha256(json.dumps(what, default=str).encode())
    for case in cases:
        source = None if _is_its_number(case) else _said(case.source)
        said = [case.key, case.split, case.group, *([] if source is None else [source])]
        digest.update(json.dumps(said, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _said(value: Any) -> Any:
    """Return plain data as JSON values, the same on every machine: an absolute path by its name, an object as None."""
    if isinstance(value, np.generic):
        value = value.item()
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(k): _said(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_said(v) for v in value]
    if isinstance(value, str | PurePath):
        return PurePath(value).name if PurePath(value).is_absolute() else str(value)
    return value if isinstance(value, int | float) else None


def _is_its_number(case: Case) -> bool:
    """Whether the source is but the number at the end of the key, which says it already."""
    number = re.search(r"\d+$", case.key)
    return number is not None and isinstance(case.source, int) and int(number[0]) == case.source


def _read_index(path: Path) -> ShardIndex | None:
    try:
        return ShardIndex.decode(path.read_bytes(), where=str(path))
    except (OSError, InputError):
        return None


def shard_entry(file: str, split: str, index: ShardIndex) -> ShardEntry:
    """Return what the manifest says of a shard."""
    index_hash = hashlib.sha256(index.encoded).hexdigest()
    return ShardEntry(file, split, len(index.samples), index.bytes, index.sha256, index_file(file), index_hash)


def reject_message(name: str, rejects: list[dict[str, str]], most: int) -> str:
    """Return the message for more rejects than are allowed: the first few, each with its reason."""
    shown = [f"  {r['key']}: {r['reason'].splitlines()[0][:300]}" for r in rejects[:4]]
    if len(rejects) > 4:
        shown.append(f"  ... and {len(rejects) - 4} more")
    head = f"{name}: {len(rejects)} cases rejected, allowed: {most} (max_rejects)"
    return "\n".join([head, *shown, "Mend them and run again (finished shards are kept), or allow more rejects"])
