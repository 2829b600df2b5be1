"""Random access into shards: one read a sample, by the index's offsets, with every member's hash checked."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from inflate3d.data.manifest import Manifest, ShardEntry
from inflate3d.data.members import decode_members as decode_members
from inflate3d.data.shard_index import Member, ShardIndex, member_hash
from inflate3d.errors import InputError

T = TypeVar("T")
_OPEN_FILES, _OPEN_INDEXES = 64, 32


class BrokenSample(InputError):
    """A sample whose bytes are missing or differ from what was written."""


@dataclass(frozen=True)
class RawMembers:
    """One sample as it lies in the tar: members by suffix ("image.npy", "json", "mp4"), views of one buffer."""

    key: str
    members: dict[str, memoryview]

    def decode(self) -> dict[str, Any]:
        """Return {"image", "mask", "video", "json"}, with what the sample has; BrokenSample if a member is damaged."""
        try:
            return decode_members(self.members)
        except (ValueError, EOFError) as fault:
            raise BrokenSample(f"sample {self.key!r}: {fault}") from fault


class ShardReader:
    """Samples of a manifest's shards, or of one split's, by (shard, index in the shard).

    `shard` counts within manifest.entries(split). Files are opened when they are first needed and those used last stay
    open. It pickles without them, so each DataLoader worker opens its own; reads by offset, so forks may share them.
    """

    def __init__(self, folder: str | Path, manifest: Manifest, split: str | None = None) -> None:
        self.folder, self.manifest, self.split = Path(folder), manifest, split
        self.entries = manifest.entries(split)
        self._forget()

    def __len__(self) -> int:
        return sum(e.samples for e in self.entries)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest, "split": self.split}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close every file; the next read opens what it needs."""
        self._files.clear()
        self._indexes.clear()

    def keys(self, shard: int) -> list[str]:
        """Return the keys of one shard in order."""
        return [key for key, _ in self._indexes[shard].samples]

    def sample(self, shard: int, i: int) -> RawMembers:
        """Return sample `i` of a shard. BrokenSample: file missing, cut short, or a member's hash differs."""
        entry = self.entries[shard]
        assert 0 <= i < entry.samples, (entry.file, i)
        key, members = self._indexes[shard].samples[i]
        return RawMembers(key, self._read_members(shard, key, members))

    def record(self, shard: int, i: int) -> dict[str, Any]:
        """Return only the JSON member of sample `i` of a shard: label, spacing, affine, shape, group, measurements."""
        key, members = self._indexes[shard].samples[i]
        only = [m for m in members if m.suffix == "json"]
        return RawMembers(key, self._read_members(shard, key, only)).decode()["json"]

    def _read_members(self, shard: int, key: str, members: list[Member]) -> dict[str, memoryview]:
        """Read members that lie side by side in one go."""
        start = members[0].offset
        content = self._read(shard, start, members[-1].offset + members[-1].size - start)
        views = {}
        for member in members:
            view = content[member.offset - start : member.offset - start + member.size]
            if member_hash(view) != member.hash:
                where = self.folder / self.entries[shard].file
                raise BrokenSample(f"{where}: {key}.{member.suffix} differs from what was written")
            views[member.suffix] = view
        return views

    def _forget(self) -> None:
        self._indexes: _Recent[ShardIndex] = _Recent(_OPEN_INDEXES, self._open_index, lambda _: None)
        self._files: _Recent[int] = _Recent(_OPEN_FILES, self._open_file, os.close)

    def _read(self, shard: int, offset: int, size: int) -> memoryview:
        """Read into fresh writable memory. Not mmap: a file that shrinks or a failing disk would kill the process."""
        content = np.empty(size, np.uint8).data
        done = 0
        while done < size:
            count = os.preadv(self._files[shard], [content[done:]], offset + done)
            if count == 0:
                raise BrokenSample(f"{self.folder / self.entries[shard].file}: is cut short at byte {offset + done}")
            done += count
        return content

    def _open_file(self, shard: int) -> int:
        entry = self.entries[shard]
        path = self.folder / entry.file
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as fault:
            raise BrokenSample(f"{path}: {fault.strerror}. See: platform shards check {self.folder}") from fault
        if (size := os.fstat(handle).st_size) != entry.bytes:
            os.close(handle)
            raise BrokenSample(f"{path}: {size} bytes; the manifest states {entry.bytes}. Build the shards again")
        return handle

    def _open_index(self, shard: int) -> ShardIndex:
        return read_index(self.folder, self.entries[shard])


def read_index(folder: Path, entry: ShardEntry) -> ShardIndex:
    """Read and verify the index of one shard; BrokenSample if it is missing or differs from what was written."""
    path = folder / entry.index
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise BrokenSample(f"{path}: {fault.strerror}. See: platform shards check {folder}") from fault
    if hashlib.sha256(content).hexdigest() != entry.index_sha256:
        raise BrokenSample(f"{path}: differs from what was written. See: platform shards check {folder}")
    return ShardIndex.decode(content, where=str(path))


class _Recent(Generic[T]):
    """What was opened last, by shard; the one unused for longest is closed first."""

    def __init__(self, most: int, open_: Callable[[int], T], close: Callable[[T], None]) -> None:
        self._most, self._open, self._close = most, open_, close
        self._held: OrderedDict[int, T] = OrderedDict()

    def __getitem__(self, shard: int) -> T:
        if shard in self._held:
            self._held.move_to_end(shard)
            return self._held[shard]
        self._held[shard] = self._open(shard)
        if len(self._held) > self._most:
            self._close(self._held.popitem(last=False)[1])
        return self._held[shard]

    def clear(self) -> None:
        while self._held:
            self._close(self._held.popitem()[1])
