"""Random access into shards: one read a sample, by the index's offsets, with every member's hash checked."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

from inflate3d.data.samples.chunked import SUFFIX as CHUNKED_SUFFIX
from inflate3d.data.samples.chunked import Region
from inflate3d.data.shards.cache import ShardCache
from inflate3d.data.shards.index import CHECKED, PackedIndex, ShardIndex
from inflate3d.data.shards.manifest import Manifest, ShardEntry
from inflate3d.data.shards.members import as_stored
from inflate3d.data.shards.members import decode_members as decode_members
from inflate3d.data.shards.open_files import OPEN_FILES, TABLE_FULL, OpenFile
from inflate3d.errors import InputError
from inflate3d.remote.address import Address, is_remote, shown
from inflate3d.remote.client import read
from inflate3d.remote.outcomes import Absent, Damaged, Interrupted, Unreachable
from inflate3d.remote.patience import Patience
from inflate3d.sample import IMAGE

_INDEXES = 80  # more than the default window of the order, else each sample would read its index anew
_MAP_FROM_BYTES = 2**16  # below that a copy costs less than a map
_MOST_INDEX_BYTES = 2**30  # of one that comes over the net


class BrokenSample(InputError):
    """A sample whose bytes are missing or differ from what was written."""


class OutdatedIndex(InputError):
    """A tar that others wrote holds other labels, or other values, than when it was indexed."""


@dataclass(slots=True)
class RawMembers:
    """One sample as it lies in the tar: members by suffix ("image.npy", "json", "mp4"), views of one buffer.

    A large volume in chunks ("image.b2nd") is a Region: nothing of it is read before a part of it is asked for.
    foreign: of a tar that others wrote, whose arrays may lack the channel axis or be of another type.
    """

    key: str
    members: dict[str, memoryview | Region]
    foreign: bool = False

    def decode(self) -> dict[str, Any]:
        """Return {MEMBER..., TARGET..., "json"}, what the sample has; BrokenSample if a member is damaged."""
        try:
            decoded = decode_members(self.members)
            if self.foreign:
                arrays = {n: a for n, a in decoded.items() if isinstance(a, np.ndarray)}
                decoded |= {name: as_stored(array, is_image=name == IMAGE) for name, array in arrays.items()}
            return decoded
        except (ValueError, EOFError, RecursionError) as fault:
            raise BrokenSample(f"sample {self.key!r}: {fault}") from fault


class ShardReader:
    """Samples of a manifest's shards, or of one split's, by (shard, index in the shard).

    `shard` counts within manifest.entries(split). Files are opened when they are first needed and those used last stay
    open (OPEN_FILES). It pickles without them, so each DataLoader worker opens its own; reads by offset, so forks may
    share them.
    """

    def __init__(
        self, folder: str | Path, manifest: Manifest, split: str | None = None, cache: ShardCache | None = None
    ) -> None:
        """Tars that are remote (http, s3) are read through a cache; indexes lie beside the manifest, in `folder`.

        What is absent, or differs from its hash or size, is a BrokenSample. While a server or a disk cannot be read,
        lets nobody in any more, or descriptors are used up, reads wait, and then raise Unreachable: nothing is broken.
        """
        self.folder, self.manifest, self.split, self.cache = str(folder), manifest, split, cache
        self.tars = manifest.tars or self.folder
        self.remote = Address.parse(self.tars) if is_remote(self.tars) else None
        self.entries = manifest.entries(split)
        self._forget()

    def __len__(self) -> int:
        return int(self.entries.samples.sum())

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest, "split": self.split, "cache": self.cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close every file; the next read opens what it needs."""
        OPEN_FILES.close_all(self._number)
        self._indexes.clear()

    def prefetch(self, shards: Sequence[int]) -> None:
        """Fetch remote shards in the background; nothing for local ones."""
        if self.remote is not None and self.cache is not None:
            self.cache.prefetch(self.remote, [self.entries[shard] for shard in shards])

    def keys(self, shard: int) -> list[str]:
        """Return the keys of one shard in order."""
        index = self._indexes[shard]
        return [index.sample(i)[0] for i in range(len(index))]

    def sample(self, shard: int, i: int, *, borrow: bool = False) -> RawMembers:
        """Return sample `i` of a shard. BrokenSample: file missing, cut short, or a member's hash differs.

        The memory is the caller's own; if he borrows it, it is read-only and gone with the next call.
        """
        index = self._indexes[shard]
        assert 0 <= i < len(index), (self.entries[shard].file, i)
        key, suffixes, places = index.sample(i)
        if index.has_chunks:
            return RawMembers(key, self._read_chunked(shard, key, index.members(i), borrow))
        views = self._read_members(shard, key, suffixes, places, borrow)
        if index.records:
            own = {suffix: view for suffix, view in views.items() if not suffix.startswith(CHECKED)}
            return RawMembers(key, {**own, "json": memoryview(index.records[i])}, foreign=True)
        return RawMembers(key, views)

    def record(self, shard: int, i: int) -> dict[str, Any]:
        """Return only the JSON member of sample `i` of a shard: label, spacing, affine, shape, group, measurements."""
        index = self._indexes[shard]
        key, suffixes, places = index.sample(i)
        if index.records:
            return RawMembers(key, {"json": memoryview(index.records[i])}).decode()["json"]
        if "json" not in suffixes:
            raise BrokenSample(f"{self._where(shard)}: {key} has no json member")
        first = 3 * suffixes.index("json")
        place = places[first : first + 3]
        return RawMembers(key, self._read_members(shard, key, ("json",), place, False)).decode()["json"]

    def _region(self, shard: int, offset: int, size: int) -> Region:
        """Return a member that is read in pieces, each checked by who reads it."""
        return Region(size, lambda start, count: self._read(shard, offset + start, count, self._chunk_memory))

    def _read_chunked(
        self, shard: int, key: str, members: list[tuple[str, int, int, int]], borrow: bool
    ) -> dict[str, memoryview | Region]:
        """Read what is small, and leave large volumes where they are."""
        large = [m for m in members if m[0].endswith(CHUNKED_SUFFIX)]
        regions: dict[str, memoryview | Region] = {s: self._region(shard, offset, size) for s, offset, size, _ in large}
        small = [m for m in members if m not in large]
        places = [number for member in small for number in member[1:]]
        return {**regions, **self._read_members(shard, key, tuple(m[0] for m in small), places, borrow)}

    def _read_members(
        self, shard: int, key: str, suffixes: tuple[str, ...], places: list[int], borrow: bool
    ) -> dict[str, memoryview | Region]:
        """Read members that lie side by side in one go; places: offset, size and hash of each."""
        if not suffixes:
            return {}
        start = places[0]
        content = self._read(shard, start, places[-3] + places[-2] - start, self._memory if borrow else None)
        views: dict[str, memoryview | Region] = {}
        at = iter(places)
        for suffix, offset, size, expected in zip(suffixes, at, at, at):  # noqa: B905 - this is faster
            views[suffix] = view = content[offset - start : offset - start + size]
            if xxh3_64_intdigest(view) != expected:
                if suffix.startswith(CHECKED):
                    told = f"{self._where(shard)}: {key}.{suffix[1:]} is not what was indexed"
                    raise OutdatedIndex(f"{told}; index the tars again: platform shards index")
                raise BrokenSample(f"{self._where(shard)}: {key}.{suffix} differs from what was written")
        return views

    def _where(self, shard: int) -> str:
        return shown(self.tars, self.entries[shard].file)

    def _forget(self) -> None:
        self._indexes = _Indexes(self._open_index)
        self._number = OPEN_FILES.number()
        self._memory, self._chunk_memory = _Memory(), _Memory()  # two, for a chunk is read while members are in use
        self._failed: dict[int, str] = {}
        self._last = -1

    def _read(self, shard: int, offset: int, size: int, memory: _Memory | None) -> memoryview:
        """Return bytes of a tar: the caller's own, or read-only in `memory` or mapped, and gone with its next read."""
        patience = None
        while True:
            try:
                return self._try(shard, offset, size, memory)
            except OSError as fault:
                OPEN_FILES.close((self._number, shard))
                patience = patience or Patience(self._where(shard), self._outage_s)
                _wait(patience, fault, self.tars)

    def _try(self, shard: int, offset: int, size: int, memory: _Memory | None) -> memoryview:
        file, done = self._file(shard), 0  # first: its size is checked before any memory is asked for
        if memory is not None and size >= _MAP_FROM_BYTES and self.remote is None:
            # A view of the page cache: no copy. The file's size is asked first, for a read past its end kills.
            if (found := os.fstat(file.handle).st_size) < offset + size:
                raise BrokenSample(f"{self._where(shard)}: is cut short at byte {found}")
            pages = OPEN_FILES.map((self._number, shard)) if file.pages is None else file.pages
            return pages[offset : offset + size]
        content = np.empty(size, np.uint8).data if memory is None else memory.first(size)
        while done < size:
            count = os.preadv(file.handle, [content[done:] if done else content], offset + done)
            if count == 0:
                raise BrokenSample(f"{self._where(shard)}: is cut short at byte {offset + done}")
            done += count
        return content if memory is None else content.toreadonly()

    def _file(self, shard: int) -> OpenFile:
        key = (self._number, shard)
        if (file := OPEN_FILES.get(key)) is not None:
            return file
        if self.remote is not None:
            # A file in use cannot be evicted from the cache: one at a time, closed before the next is asked for, so
            # that nobody waits while he holds one.
            OPEN_FILES.close((self._number, self._last))
            self._last = shard
            return OPEN_FILES.open(key, lambda: self._open_remote(shard))
        return OPEN_FILES.open(key, lambda: self._open_local(shard))

    def _open_remote(self, shard: int) -> int:
        assert self.cache is not None, "remote tars are read through a cache"
        assert self.remote is not None
        if shard in self._failed:  # else each of its samples would wait for the server anew
            raise BrokenSample(self._failed[shard])
        try:
            return self.cache.open(self.remote, self.entries[shard])
        except (Absent, Damaged) as fault:
            self._failed[shard] = str(fault)
            raise BrokenSample(str(fault)) from fault
        except InputError as fault:  # nobody is let in, or there is no room
            raise Unreachable(str(fault)) from fault

    def _open_local(self, shard: int) -> int:
        entry = self.entries[shard]
        path = f"{self.tars}/{entry.file}"
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if (size := os.fstat(handle).st_size) != entry.bytes:
            os.close(handle)
            raise BrokenSample(f"{path}: {size} bytes; the manifest states {entry.bytes}. Build the shards again")
        return handle

    @property
    def _outage_s(self) -> float | None:
        return None if self.cache is None else self.cache.outage_s

    def _open_index(self, shard: int) -> PackedIndex:
        entry = self.entries[shard]
        where = shown(self.folder, entry.index)
        index = PackedIndex(_read_index(self.folder, entry, self._outage_s), where=where)
        if index.size != entry.bytes:
            raise BrokenSample(f"{where}: describes a tar of {index.size} bytes; the manifest states {entry.bytes}")
        if len(index) != entry.samples:
            raise BrokenSample(f"{where}: {len(index)} samples; the manifest states {entry.samples}")
        return index


def read_index(folder: str | Path, entry: ShardEntry) -> ShardIndex:
    """Read and verify the index of one shard; BrokenSample if it is missing or differs from what was written."""
    return ShardIndex.decode(_read_index(folder, entry), where=shown(folder, entry.index))


def _read_index(folder: str | Path, entry: ShardEntry, outage_s: float | None = None) -> bytes:
    where = shown(folder, entry.index)
    differs = f"differs from what was written. See: platform shards check {shown(folder)}"

    def fault(content: bytes) -> str | None:
        return None if hashlib.sha256(content).hexdigest() == entry.index_sha256 else differs

    if is_remote(folder):
        address = Address.parse(str(folder)) / entry.index
        try:
            return read(address, limit=_MOST_INDEX_BYTES, outage_s=outage_s, fault=fault)
        except (Absent, Damaged) as broken:
            raise BrokenSample(str(broken)) from broken
        except InputError as refused:
            raise Unreachable(str(refused)) from refused
    patience = Patience(where, outage_s)
    while True:
        try:
            content = OPEN_FILES.with_room(Path(where).read_bytes)
        except OSError as told:
            _wait(patience, told, str(folder))
            continue
        if fault(content):
            raise BrokenSample(f"{where}: {differs}")
        return content


def _wait(patience: Patience, fault: OSError, folder: str) -> None:
    """Wait for a disk's fault to pass. BrokenSample: the file is absent; Unreachable: it did not, or cannot pass."""
    if fault.errno in (errno.ENOENT, errno.ENOTDIR) and os.path.isdir(folder):  # else the disk itself is gone
        raise BrokenSample(f"{fault.filename}: {fault.strerror}. See: platform shards check {folder}") from fault
    if fault.errno in (errno.EACCES, errno.EPERM):
        raise Unreachable(f"{fault.filename}: {fault.strerror}; check who may read it") from fault
    hint = "; raise the limit (ulimit -n)" if fault.errno in TABLE_FULL else ""
    patience.wait(Interrupted(f"{fault.strerror}{hint}"))


class _Memory:
    """Memory that is used again and grows."""

    def __init__(self) -> None:
        self._bytes = np.empty(_MAP_FROM_BYTES, np.uint8).data

    def first(self, size: int) -> memoryview:
        """Return its first bytes."""
        if len(self._bytes) < size:
            self._bytes = np.empty(size, np.uint8).data
        return self._bytes[:size]


class _Indexes(dict[int, PackedIndex]):
    """The indexes that were opened last, by shard."""

    def __init__(self, open_: Callable[[int], PackedIndex]) -> None:
        super().__init__()
        self._open = open_

    def __missing__(self, shard: int) -> PackedIndex:
        self[shard] = found = self._open(shard)
        if len(self) > _INDEXES:
            del self[next(iter(self))]
        return found
