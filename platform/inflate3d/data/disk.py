"""A full disk as one clear error: which folder, how much is free there, and what to do."""

from __future__ import annotations

import errno
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
