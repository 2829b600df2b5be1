"""A bounded folder of shards fetched from afar, shared by every process and rank of a machine.

Files are named by their sha256, checked on arrival. Whoever reads a file holds a shared lock on it and whoever fetches
one holds an exclusive lock on its partial file; locks end with their process, so a crash leaves nothing locked, and a
partial file is gone on with or evicted. Room is reserved under one lock before a byte is fetched, and a partial file
counts with its full size: the bound is never exceeded.

A file's modification time says how dear it is, to all processes alike: when it was used last, or, of those that a
process knows to be needed soon, a time in the future, the sooner the later. What is worth least is evicted first, so
what is needed last goes before what is needed next.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from inflate3d.data.shards.manifest import ShardEntry
from inflate3d.errors import InputError
from inflate3d.files import told_when_full
from inflate3d.remote.address import Address
from inflate3d.remote.client import fetch_into
from inflate3d.remote.outcomes import Unreachable

log = logging.getLogger(__name__)
GB = 10**9
_FETCHES = 4  # at a time in each process: far servers answer late
_POLL_S, _NO_ROOM_S = 0.02, 600
_SOON_S = 3600  # the next shard needed counts as used in an hour, the one after it a second earlier, and so on


_Ahead = tuple[Address, ShardEntry, Future[Unreachable | None]]


class _NoRoom(Exception):
    """Whatever could be evicted is in use, or dearer."""


class ShardCache:
    """Local copies of remote shards, `limit` bytes at the most. outage_s: how long a server is waited for."""

    def __init__(self, folder: str | Path, limit: int, outage_s: float | None = None) -> None:
        self.folder, self.limit, self.outage_s = Path(folder).expanduser(), int(limit), outage_s
        self._ahead: queue.Queue[_Ahead] | None = None
        self._fetches: dict[str, Future[Unreachable | None]] = {}  # under way or to come, by sha256
        self._needed: dict[str, dict[str, float]] = {}  # by remote folder: what is needed soon, and how dear it is
        self._process = 0

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "limit": self.limit, "outage_s": self.outage_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def open(self, remote: Address, entry: ShardEntry) -> int:
        """Return a handle on a whole shard, fetched if need be; it cannot be evicted before the handle is closed.

        InputError: it is absent, differs from the manifest, or does not fit; Unreachable: there is an outage.
        """
        if entry.bytes > self.limit:
            raise InputError(
                f"{remote / entry.file}: {entry.bytes} bytes; the cache {self.folder} is bounded to {self.limit}. "
                "Raise data.cache_gb"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        deadline = None
        while True:
            try:
                if (handle := self._whole_or_fetched(remote, entry)) is not None:
                    return handle
                deadline = None
            except _NoRoom as fault:
                deadline = deadline or time.monotonic() + _NO_ROOM_S
                if time.monotonic() > deadline:
                    told = f"{self.folder}: no room for {entry.file} in {_NO_ROOM_S} s. Raise data.cache_gb"
                    raise InputError(told) from fault
            time.sleep(_POLL_S)

    def _whole_or_fetched(self, remote: Address, entry: ShardEntry) -> int | None:
        """Return a handle on a whole shard; None while another process fetches it. _NoRoom, Unreachable, InputError."""
        fetch = self._fetches.get(entry.sha256) if self._process == os.getpid() else None
        if fetch is not None and not fetch.cancel() and (outage := fetch.result()) is not None:
            raise outage
        handle = self._whole(entry)
        return self._fetch(remote, entry) if handle is None else handle

    def prefetch(self, remote: Address, entries: list[ShardEntry]) -> None:
        """Fetch these in the background, in the order of their need; faults are left to who reads them.

        What is fetched ahead takes the room only of what is needed later or not at all.
        """
        if self._process != os.getpid():  # a fork has no threads
            self._process, self._ahead, self._fetches = os.getpid(), queue.Queue(), {}
            for _ in range(_FETCHES):  # a pool would finish all that is queued before the process ends
                threading.Thread(target=self._work, args=(self._ahead,), daemon=True).start()
        assert self._ahead is not None
        soon = time.time() + _SOON_S
        self._needed[remote.text] = {entry.sha256: soon - rank for rank, entry in enumerate(entries)}
        missing = [entry for entry in entries if not self._marked(entry)]  # all are marked before any takes room
        for entry in missing:
            if entry.sha256 not in self._fetches and entry.bytes <= self.limit:
                self._fetches[entry.sha256] = Future()
                self._ahead.put((remote, entry, self._fetches[entry.sha256]))

    def _marked(self, entry: ShardEntry) -> bool:
        """Mark a file with its worth, without locking it; return whether it is there."""
        try:
            os.utime(self.folder / entry.sha256, (self._worth(entry.sha256),) * 2)
        except FileNotFoundError:
            return False
        except OSError:  # another user's
            pass
        return True

    def _worth(self, sha256: str) -> float:
        """Return the time that a file used now is marked with."""
        return max((needed.get(sha256, 0.0) for needed in list(self._needed.values())), default=0.0) or time.time()

    def _work(self, ahead: queue.Queue[_Ahead]) -> None:
        while True:
            remote, entry, fetch = ahead.get()
            if fetch.set_running_or_notify_cancel():  # else who needs it fetches it himself
                outage = None
                try:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    handle = self._fetch(remote, entry, dearer=self._worth(entry.sha256))
                    if handle is not None:
                        os.close(handle)
                except Unreachable as fault:  # who waits for it has waited long enough
                    outage = fault
                except Exception:  # who reads it meets the fault himself, and tells of it
                    log.debug("%s was not fetched ahead", entry.file, exc_info=True)
                finally:  # else who waits for it would wait in vain
                    fetch.set_result(outage)
            self._fetches.pop(entry.sha256, None)

    def _whole(self, entry: ShardEntry) -> int | None:
        """Open and lock a finished file; None if there is none."""
        try:
            handle = os.open(self.folder / entry.sha256, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(handle, fcntl.LOCK_SH)
        if os.fstat(handle).st_nlink == 0:  # evicted between the two calls
            os.close(handle)
            return None
        self._mark(handle, entry)
        return handle

    def _mark(self, handle: int, entry: ShardEntry) -> None:
        with suppress(OSError):
            os.utime(handle, (self._worth(entry.sha256),) * 2)

    def _fetch(self, remote: Address, entry: ShardEntry, *, dearer: float = float("inf")) -> int | None:
        """Reserve room, fetch and check a file; None if it is there, or another process fetches it. _NoRoom.

        dearer: files of at least this worth stay.
        """
        partial = self.folder / f".part-{entry.sha256}-{entry.bytes}"
        with self._locked():
            if (self.folder / entry.sha256).exists():
                return None
            if not self._make_room(partial, entry.bytes, dearer):
                raise _NoRoom
            handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            # Who fetched it may have finished between the two calls: then the name is gone, or another file's.
            if not _lock(handle) or not _is_named(handle, partial):
                os.close(handle)
                return None
        try:
            full = told_when_full(self.folder, "Free some, give another data.cache_dir, or lower data.cache_gb")
            with full, os.fdopen(handle, "r+b", closefd=False) as file:
                fetch_into(
                    file,
                    remote / entry.file,
                    sha256=entry.sha256,
                    limit=entry.bytes,
                    size=entry.bytes,
                    outage_s=self.outage_s,
                )
            self._mark(handle, entry)
            os.rename(partial, self.folder / entry.sha256)
            fcntl.flock(handle, fcntl.LOCK_SH)
        except BaseException:
            os.close(handle)
            raise
        if os.fstat(handle).st_nlink == 0:  # evicted while the lock changed its kind, which is not atomic
            os.close(handle)
            return None
        return handle

    def _make_room(self, partial: Path, size: int, dearer: float) -> bool:
        """Evict what is worth least and is not in use, until `size` more bytes fit; False if they cannot yet."""
        found = []
        used = 0
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                if path.name == "lock" or path == partial:
                    continue
                reserved = int(path.name.rpartition("-")[2]) if path.name.startswith(".part-") else path.stat().st_size
                used += reserved
                found.append((path.stat().st_mtime, reserved, path))
        for worth, reserved, path in sorted(found):
            if used + size <= self.limit or worth >= dearer:
                break
            if _evict(path):
                used -= reserved
        return used + size <= self.limit

    @contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _evict(path: Path) -> bool:
    """Delete a file that nobody has locked; return whether it is gone."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if not _lock(handle):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(handle)


def _is_named(handle: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), os.stat(path))
    return False


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
