"""Files written whole or not at all, their hashes, and a full disk as one clear error."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inflate3d.errors import InputError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def told_when_full(folder: Path, remedy: str) -> Iterator[None]:
    """Turn what a full disk, a quota or a limit on file sizes makes Python raise into an InputError."""
    try:
        yield
    except OSError as fault:
        if fault.errno not in _FULL:
            raise
        free = shutil.disk_usage(folder).free / 1e6
        raise InputError(f"{folder}: {fault.strerror}; {free:.1f} MB are free there. {remedy}") from fault


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that a crash leaves either the old one or the new one, never a part; text as UTF-8."""
    temporary = path.with_name(f".tmp-{path.name}")
    with told_when_full(path.parent, "Free some and run the same command again"), temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def file_sha256(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
