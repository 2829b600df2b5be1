"""How a read from elsewhere ends when it does not end well; a type each, for callers do unlike things about them."""

from __future__ import annotations

from inflate3d.errors import InputError


class Absent(InputError):
    """There is no such file."""


class Refused(InputError):
    """The file may not be read: credentials are missing, wrong or expired, or a certificate does not hold."""


class Damaged(InputError):
    """What arrived differs from the sha256 that it must have."""


class Unreachable(Exception):
    """It cannot be read for now, and nothing is known to be wrong with what lies there: an outage, or no room.

    No InputError, so that nobody books it as a broken sample. Of the traceback in which a DataLoader wraps it, only
    the message is kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


class Interrupted(Exception):
    """One try failed, another may help, after `retry_after_s` seconds if the server says so: for Patience alone."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
