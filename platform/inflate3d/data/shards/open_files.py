"""The shards that a process has open: one budget of file descriptors for all its datasets, those used last stay open.

The budget is half of what the process may still open when it reads its first shard; the other half is left to sockets,
workers, loggers and checkpoints. The soft limit is raised for that, within the hard one: a process may, and only
programs that call select(), of which this is none, must not open more than 1,024. A mapped shard counts twice, since
Python keeps a descriptor of its own for the map.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import resource
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

_WANTED, _LEAST = 4096, 4
TABLE_FULL = (errno.EMFILE, errno.ENFILE)
T = TypeVar("T")
Key = tuple[int, int]  # a reader's number, and a shard of its


@dataclass(slots=True)
class OpenFile:
    """A shard's descriptor, and the whole of it as mapped pages where a part was asked for in that way."""

    handle: int
    pages: memoryview | None = None

    @property
    def descriptors(self) -> int:
        return 1 if self.pages is None else 2


class OpenFiles:
    """What is open, by key, the longest unused first."""

    def __init__(self, most: int | None = None) -> None:
        """most: descriptors at the most; default: by the limits of the process, when the first file is opened."""
        self._files: OrderedDict[Key, OpenFile] = OrderedDict()
        self._numbers = itertools.count()
        self._most, self._used = most, 0

    def number(self) -> int:
        """Return a number for a reader, which begins its keys."""
        return next(self._numbers)

    def get(self, key: Key) -> OpenFile | None:
        """Return what is open under this key."""
        if (file := self._files.get(key)) is not None:
            self._files.move_to_end(key)
        return file

    def open(self, key: Key, open_: Callable[[], int]) -> OpenFile:
        """Open a shard, and close others where the budget or the table of descriptors is full. OSError as it comes."""
        handle = self.with_room(open_, key)
        self._files[key] = file = OpenFile(handle)
        self._used += 1
        return file

    def map(self, key: Key) -> memoryview:
        """Return the pages of an open shard."""
        file = self._files[key]
        if file.pages is None:
            mapped = self.with_room(lambda: mmap.mmap(file.handle, 0, mmap.MAP_PRIVATE, mmap.PROT_READ), key)
            file.pages = memoryview(mapped)
            self._used += 1
        return file.pages

    def close(self, key: Key) -> None:
        """Close a shard, if it is open. What was borrowed of its pages stays as long as it is used."""
        if (file := self._files.pop(key, None)) is not None:
            self._used -= file.descriptors
            os.close(file.handle)

    def close_all(self, number: int) -> None:
        """Close what a reader has open."""
        for key in [key for key in self._files if key[0] == number]:
            self.close(key)

    def with_room(self, take: Callable[[], T], spared: Key | None = None) -> T:
        """Return what is taken, which may need a descriptor: others are closed for it, but not the one spared."""
        if self._most is None:
            self._most = _budget()
        while self._used >= self._most and self._close_oldest(spared):
            pass
        while True:
            try:
                return take()
            except OSError as fault:
                if fault.errno not in TABLE_FULL or not self._close_oldest(spared):
                    raise

    def _close_oldest(self, spared: Key | None) -> bool:
        if spared is not None and spared in self._files:
            self._files.move_to_end(spared)
        oldest = next(iter(self._files), None)
        if oldest is None or oldest == spared:
            return False
        self.close(oldest)
        return True


def _budget() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _WANTED:
        wanted = _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    try:
        used = len(os.listdir("/dev/fd"))
    except OSError:
        used = 64
    limit = _WANTED if soft < 0 else min(soft, _WANTED)
    return max((limit - used) // 2, _LEAST)


OPEN_FILES = OpenFiles()  # of this process; a fork has a copy, whose files it may close
