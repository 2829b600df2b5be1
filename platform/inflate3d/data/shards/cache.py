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
import hashlib
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path

from inflate3d.data.shards.manifest import ShardEntry
from inflate3d.errors import InputError
from inflate3d.files import told_when_full
from inflate3d.remote.folder import RemoteFolder

log = logging.getLogger(__name__)
GB = 10**9
_STEP = 8 * 2**20
_FETCHES = 4  # at a time in each process: far servers answer late
_POLL_S, _MOST_WAIT_S = 0.02, 600
_SOON_S = 3600  # the next shard needed counts as used in an hour, the one after it a second earlier, and so on


class ShardCache:
    """Local copies of remote shards, `limit` bytes at the most."""

    def __init__(self, folder: str | Path, limit: int) -> None:
        self.folder, self.limit = Path(folder).expanduser(), int(limit)
        self._ahead: queue.Queue[tuple[RemoteFolder, ShardEntry, Future[None]]] | None = None
        self._fetches: dict[str, Future[None]] = {}  # under way or to come, by sha256
        self._needed: dict[str, dict[str, float]] = {}  # by remote folder: what is needed soon, and how dear it is
        self._process = 0

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "limit": self.limit}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__init__(state["folder"], state["limit"])  # type: ignore[misc, arg-type]

    def open(self, remote: RemoteFolder, entry: ShardEntry) -> int:
        """Return a handle on a whole shard, fetched if need be; it cannot be evicted before the handle is closed.

        InputError: it cannot be fetched, differs from the manifest, or does not fit.
        """
        if entry.bytes > self.limit:
            raise InputError(
                f"{remote.url}/{entry.file}: {entry.bytes} bytes; the cache {self.folder} is bounded to {self.limit}. "
                "Raise data.cache_gb"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + _MOST_WAIT_S
        while time.monotonic() < deadline:
            fetch = self._fetches.get(entry.sha256) if self._process == os.getpid() else None
            if fetch is not None and not fetch.cancel():
                wait([fetch], deadline - time.monotonic())
            handle = self._whole(entry)
            if handle is None:
                handle = self._fetch(remote, entry)
            if handle is not None:
                return handle
            time.sleep(_POLL_S)
        raise InputError(f"{self.folder}: no room for {entry.file} in {_MOST_WAIT_S} s. Raise data.cache_gb")

    def prefetch(self, remote: RemoteFolder, entries: list[ShardEntry]) -> None:
        """Fetch these in the background, in the order of their need; faults are left to who reads them.

        What is fetched ahead takes the room only of what is needed later or not at all.
        """
        if self._process != os.getpid():  # a fork has no threads
            self._process, self._ahead, self._fetches = os.getpid(), queue.Queue(), {}
            for _ in range(_FETCHES):  # a pool would finish all that is queued before the process ends
                threading.Thread(target=self._work, args=(self._ahead,), daemon=True).start()
        assert self._ahead is not None
        soon = time.time() + _SOON_S
        self._needed[remote.url] = {entry.sha256: soon - rank for rank, entry in enumerate(entries)}
        for entry in entries:
            with suppress(OSError):
                os.utime(self.folder / entry.sha256, (self._worth(entry.sha256),) * 2)
            if entry.sha256 not in self._fetches and entry.bytes <= self.limit:
                self._fetches[entry.sha256] = Future()
                self._ahead.put((remote, entry, self._fetches[entry.sha256]))

    def _worth(self, sha256: str) -> float:
        """Return the time that a file used now is marked with."""
        return max((needed.get(sha256, 0.0) for needed in list(self._needed.values())), default=0.0) or time.time()

    def _work(self, ahead: queue.Queue[tuple[RemoteFolder, ShardEntry, Future[None]]]) -> None:
        while True:
            remote, entry, fetch = ahead.get()
            if fetch.set_running_or_notify_cancel():  # else who needs it fetches it himself
                try:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    handle = self._whole(entry)
                    if handle is None:
                        handle = self._fetch(remote, entry, dearer=self._worth(entry.sha256))
                    if handle is not None:
                        os.close(handle)
                except Exception:  # who reads it meets the fault himself, and tells of it
                    log.debug("%s was not fetched ahead", entry.file, exc_info=True)
                finally:  # else who waits for it would wait in vain
                    fetch.set_result(None)
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

    def _fetch(self, remote: RemoteFolder, entry: ShardEntry, *, dearer: float = float("inf")) -> int | None:
        """Reserve room, fetch and check a file; None if another process fetches it or there is no room yet.

        dearer: files of at least this worth stay.
        """
        partial = self.folder / f".part-{entry.sha256}-{entry.bytes}"
        with self._locked():
            if (self.folder / entry.sha256).exists() or not self._make_room(partial, entry.bytes, dearer):
                return None
            handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            # Who fetched it may have finished between the two calls: then the name is gone, or another file's.
            if not _lock(handle) or not _is_named(handle, partial):
                os.close(handle)
                return None
        try:
            self._transfer(remote, entry, handle)
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

    def _transfer(self, remote: RemoteFolder, entry: ShardEntry, handle: int) -> None:
        """Go on where the partial file ends; what arrives wrong is fetched once more from its start."""
        for _ in range(2):
            done = min(os.fstat(handle).st_size, entry.bytes)
            digest = _sha256(handle, done)
            for content in remote.pieces(entry.file, done, entry.bytes):
                with told_when_full(self.folder, "Free some, give another data.cache_dir, or lower data.cache_gb"):
                    _write(handle, content, done)
                digest.update(content)
                done += len(content)
            if done == entry.bytes and digest.hexdigest() == entry.sha256:
                return
            os.ftruncate(handle, 0)
        raise InputError(f"{remote.url}/{entry.file}: differs from what its manifest states (sha256)")

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


def _write(handle: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        count = os.pwrite(handle, view, offset)
        view, offset = view[count:], offset + count


def _sha256(handle: int, stop: int) -> hashlib._Hash:
    """Return the hash of the bytes before `stop`."""
    digest, offset = hashlib.sha256(), 0
    while content := os.pread(handle, min(_STEP, stop - offset), offset):
        digest.update(content)
        offset += len(content)
    return digest
