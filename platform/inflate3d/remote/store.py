"""One try at a file in a store that is no web server, through fsspec: s3:// and whatever else it has a package for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from inflate3d.errors import InputError
from inflate3d.remote.address import Address, scrubbed
from inflate3d.remote.outcomes import Absent, Interrupted, Refused

_STEP = 8 * 2**20  # bytes asked for at once
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError")


@contextmanager
def open_store(
    address: Address, start: int, stop: int | None, *, timeout_s: float
) -> Iterator[tuple[int | None, Iterator[bytes]]]:
    """Give (size of the whole file, its bytes start..stop, asked for in steps), as open_http does."""
    system, path = filesystem(address, timeout_s=timeout_s)
    with _told(address):
        total = int(system.info(path)["size"])
    end = total if stop is None else min(stop, total)

    def steps() -> Iterator[bytes]:
        for first in range(start, end, _STEP):
            with _told(address):
                content = system.cat_file(path, start=first, end=min(first + _STEP, end))
            yield content

    yield total, steps()


def list_store(folder: Address, pattern: str, *, timeout_s: float) -> list[str]:
    """Return the names of a folder's files that match, sorted."""
    system, path = filesystem(folder, timeout_s=timeout_s)
    with _told(folder):
        return sorted(str(found).rpartition("/")[2] for found in system.glob(f"{path}/{pattern}"))


def filesystem(address: Address, *, timeout_s: float = 30) -> tuple[Any, str]:
    """Return fsspec's file system and the path in it. It keeps one a process and thread, so nothing is kept here."""
    from fsspec.core import url_to_fs

    options: dict[str, Any] = {}
    if address.scheme == "s3":  # one try is one try: the client decides on others
        wait = {"connect_timeout": min(10, timeout_s), "read_timeout": timeout_s}
        options["config_kwargs"] = {**wait, "retries": {"total_max_attempts": 1}}
    try:
        return url_to_fs(address.text, use_listings_cache=False, **options)
    except ImportError as fault:
        raise InputError(f"{address}: {fault}. For s3: pip install 'inflate3d[s3]'") from fault
    except ValueError as fault:
        raise InputError(f"{address}: {scrubbed(fault)}. Allowed: a local folder, http(s)://, s3://") from fault


@contextmanager
def _told(address: Address) -> Iterator[None]:
    """Say what a store's fault means: botocore, aiohttp and sockets raise dozens of kinds."""
    try:
        yield
    except FileNotFoundError as fault:
        raise Absent(f"{address}: no such file; check the address") from fault
    except Exception as fault:
        told = scrubbed(fault) or type(fault).__name__
        if isinstance(fault, PermissionError) or type(fault).__name__ in _NO_CREDENTIALS:
            raise Refused(f"{address}: {told}; check your credentials") from fault
        if isinstance(fault, (ValueError, TypeError)):
            raise InputError(f"{address}: {told}; check the address") from fault
        raise Interrupted(told) from fault
