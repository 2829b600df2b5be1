"""Folders of shards that lie elsewhere: http(s)://, and s3:// and the like through fsspec; every read is retried."""

from __future__ import annotations

import itertools
import time
import urllib.parse
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, TypeVar

from inflate3d.errors import InputError
from inflate3d.remote.ranges import pieces_http, read_http, size_http

T = TypeVar("T")
TRIES = 5
_CONNECT_S, _READ_S = 10, 30
_STEP = 8 * 2**20  # what a service that is no web server is asked for at once
_ENOUGH = 2**16  # bytes of one try after which the tries count anew
_HTTP = ("http://", "https://")


class RemoteFolder:
    """Reads byte ranges of the files of one remote folder; it connects when it first reads, in each process anew."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Return a file, or its bytes start..stop. Raises InputError if it still fails after several tries."""
        return self._retried(f"{self.url}/{name}", lambda: self._read(name, start, stop))

    def pieces(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        """Yield a file's bytes start..stop as they arrive, going on where a connection broke; fewer if it ends before.

        Raises InputError if several tries in a row bring next to nothing.
        """
        where, done, failures = f"{self.url}/{name}", start, 0
        while True:
            begun = done
            try:
                for piece in self._pieces(name, done, stop):
                    done += len(piece)
                    yield piece
                return
            except Exception as fault:
                failures = 1 if done - begun >= _ENOUGH else failures + 1
                _wait_or_raise(where, fault, failures)

    def _pieces(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        if self.url.startswith(_HTTP):
            yield from pieces_http(self._address(name), start, stop, timeout_s=_READ_S)
            return
        for first in range(start, stop, _STEP):
            yield self._read(name, first, min(first + _STEP, stop))

    def size(self, name: str) -> int:
        """Return a file's bytes. Raises InputError as read does, or if the server does not tell."""
        where = f"{self.url}/{name}"
        size = self._retried(where, lambda: self._size(name))
        if not isinstance(size, int):
            raise InputError(f"{where}: the server does not tell its size")
        return size

    def _read(self, name: str, start: int | None, stop: int | None) -> bytes:
        if self.url.startswith(_HTTP):
            return read_http(self._address(name), start, stop, timeout_s=_READ_S)
        system, path = self._opened
        return system.cat_file(f"{path}/{name}", start=start, end=stop)

    def _size(self, name: str) -> int | None:
        if self.url.startswith(_HTTP):
            return size_http(self._address(name), timeout_s=_READ_S)
        system, path = self._opened
        return system.info(f"{path}/{name}")["size"]

    def _address(self, name: str) -> str:
        return f"{self.url}/{urllib.parse.quote(name)}"

    def names(self, pattern: str) -> list[str]:
        """Return the files whose names match, sorted; for services that list their folders (s3, not http)."""
        system, path = self._opened
        found = self._retried(self.url, lambda: system.glob(f"{path}/{pattern}"))
        return sorted(str(name).rpartition("/")[2] for name in found)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        scheme = self.url.partition("://")[0]
        options: dict[str, Any] = {}
        if scheme == "s3":
            options["config_kwargs"] = {"connect_timeout": _CONNECT_S, "read_timeout": _READ_S}
        from fsspec.core import url_to_fs

        try:
            return url_to_fs(self.url, use_listings_cache=False, **options)
        except ImportError as fault:
            raise InputError(f"{self.url}: {fault}. For s3: pip install 'inflate3d[s3]'") from fault
        except ValueError as fault:
            raise InputError(f"{self.url}: {fault}. Allowed: a local folder, http(s)://, s3://") from fault

    def _retried(self, where: str, read: Callable[[], T]) -> T:
        for failures in itertools.count(1):
            try:
                return read()
            except Exception as fault:  # urllib, botocore and sockets raise dozens of kinds
                _wait_or_raise(where, fault, failures)
        raise AssertionError("unreachable")


def _wait_or_raise(where: str, fault: Exception, failures: int) -> None:
    """Wait before the next try, longer each time; InputError where another would be one too many."""
    if isinstance(fault, FileNotFoundError):
        raise InputError(f"{where}: no such file ({' '.join(str(fault).split())[:80]})") from fault
    if failures == TRIES:
        reason = " ".join(str(fault).split())[:200] or type(fault).__name__
        raise InputError(f"{where}: cannot be read after {TRIES} tries ({reason})") from fault
    time.sleep(0.1 * 2 ** (failures - 1))


def is_remote(place: object) -> bool:
    """Is this the address of a remote folder, not a local path?"""
    return "://" in str(place)
