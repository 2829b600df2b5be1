"""One writer for a folder of results: who writes holds the lock on `writer.lock`, and says there who he is.

The rule, in the order in which it is applied:

1. A POSIX record lock (fcntl) on the file decides. The kernel, and for NFS its server, gives it back when the process
   or its node dies, however that happens; children that a process leaves behind do not keep it. By whatever path a
   folder is reached, the file is the same.
2. Where the lock was free, or the file system has none, the file may name another machine: some mounts keep locks to
   themselves. A writer renews the file's date every BEAT_S seconds. If the date is older than GONE_S by the clock of
   the file system itself, or does not change while it is watched for WATCH_S seconds, that writer is dead.
3. A writer named on this very machine (the same boot) that does not hold the lock is dead.

The file stays; it is emptied by who ends in order. No torch is imported here.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inflate3d.errors import InputError

LOCK = "writer.lock"
BEAT_S, GONE_S = 10.0, 600.0
WATCH_S = 90.0  # a mount may show a file's date as it was up to 60 s ago
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
_held: set[tuple[int, int]] = set()  # of this process, which its own lock would not keep out
log = logging.getLogger(__name__)


@contextmanager
def one_writer(
    folder: str | Path, *, name: str = LOCK, other_folder: str = "--trainer.default_root_dir"
) -> Iterator[None]:
    """Be the one who writes into this folder, which is made if need be. InputError names who is it already.

    name: of the lock, where several share a folder and write different files. other_folder: the option that names one.
    """
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    # Looked at before it is opened: closing any handle on it would give up the lock that this process holds.
    if path.exists() and _identity(path.stat()) in _held:
        raise _taken(path, "this very process", other_folder)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _take(handle, path, other_folder)
        _write(handle, json.dumps(_own_record()).encode())
        _held.add(identity := _identity(os.fstat(handle)))
        ended = threading.Event()
        beat = threading.Thread(target=_beat, args=(handle, ended), name="writer.lock", daemon=True)
        beat.start()
        try:
            yield
        finally:
            ended.set()
            beat.join()
            _held.discard(identity)
            with suppress(OSError):  # a full disk; a lock that is given back is enough
                _write(handle, b"")
    finally:
        os.close(handle)


def _take(handle: int, path: Path, other_folder: str) -> None:
    """Lock the file, or raise what refuses the start."""
    locks = True
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as fault:
        if fault.errno in (errno.EACCES, errno.EAGAIN):
            raise _taken(path, _name_of(_read_patiently(handle)), other_folder) from None
        if fault.errno not in _NO_LOCKS:
            raise
        locks = False
    other = _read(handle)
    if other is None or (locks and _is_this_machine(other)):
        return
    if _is_alive(handle, path, other):
        raise _taken(path, _name_of(other), other_folder)


def _is_alive(handle: int, path: Path, other: dict[str, Any]) -> bool:
    """Whether the writer whom the file names renews its date."""
    before = os.fstat(handle).st_mtime_ns
    if _now_ns(path.parent) - before > GONE_S * 1e9:
        return False
    log.info("%s names %s: waiting up to %.0f s to see whether it still writes", path, _name_of(other), WATCH_S)
    until = time.monotonic() + WATCH_S
    while time.monotonic() < until:
        time.sleep(min(1.0, WATCH_S / 20))
        if os.stat(path).st_mtime_ns != before:
            return True
    return False


def _now_ns(folder: Path) -> int:
    """Return the time by the clock that dates this folder's files: the server's, if there is one."""
    with tempfile.TemporaryFile(dir=folder) as file:
        os.utime(file.fileno())
        return os.fstat(file.fileno()).st_mtime_ns


def _beat(handle: int, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        with suppress(OSError):
            os.utime(handle)


def _own_record() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _boot() -> str:
    """Return what tells this start of this machine from all others; "" where the system does not say."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _is_this_machine(other: dict[str, Any]) -> bool:
    own = _own_record()
    return bool(other.get("boot") == own["boot"] if own["boot"] else other.get("host") == own["host"])


def _read(handle: int) -> dict[str, Any] | None:
    """Return who the file names; None if nobody. {} if that cannot be read."""
    raw = os.pread(handle, 4096, 0)
    if not raw:
        return None
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_patiently(handle: int) -> dict[str, Any]:
    """Return who holds the lock, who may just be about to say so where it still names one who died."""
    for _ in range(20):
        if (found := _read(handle)) and not _is_dead(found):
            return found
        time.sleep(0.05)
    return {}


def _is_dead(other: dict[str, Any]) -> bool:
    """Whether the file names a process of this host that is no more."""
    pid = other.get("pid")
    if other.get("host") != socket.gethostname() or not _is_this_machine(other) or not isinstance(pid, int) or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # of another user
        return False
    return False


def _write(handle: int, content: bytes) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, content, 0)
    os.fsync(handle)


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _name_of(other: dict[str, Any]) -> str:
    if not other:
        return "a process that does not say who it is"
    job = f", SLURM job {other['job']}" if other.get("job") else ""
    return f"process {other.get('pid')} on host {other.get('host')}{job}, since {other.get('since')}"


def _taken(path: Path, who: str, other_folder: str) -> InputError:
    return InputError(
        f"{path.parent}: another start of this run is writing there: {who}. "
        f"Wait for it or stop it, or start another run: {other_folder} ANOTHER_FOLDER"
    )
