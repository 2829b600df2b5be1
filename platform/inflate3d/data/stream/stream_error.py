"""Why a stream of batches cannot go on."""

from __future__ import annotations

import shutil
from contextlib import suppress

from inflate3d.errors import InputError

_SHARED_MEMORY = "/dev/shm"


class StreamError(InputError):
    """A stream that cannot go on. Of the traceback in which a DataLoader wraps it, only the message is kept."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())

    @classmethod
    def of_shared_memory(cls, needed: int) -> StreamError:
        """Return the error for shared memory that is full. needed: bytes of the batch that did not fit."""
        free = ""
        with suppress(OSError):
            free = f", {shutil.disk_usage(_SHARED_MEMORY).free / 1e6:.1f} MB are free"
        return cls(
            f"{_SHARED_MEMORY}: the shared memory is full: a batch of {needed / 1e6:.1f} MB does not fit{free}. "
            "Enlarge it (docker run --shm-size, or --ipc=host), or take fewer data.num_workers (0: none) or smaller "
            "batches"
        )
