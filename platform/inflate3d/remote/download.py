"""Transfers of single files over http(s) and from s3: resumed where they broke, bounded, checked on arrival."""

from __future__ import annotations

import hashlib
import http.client
import logging
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from inflate3d.errors import InputError
from inflate3d.models.publication.layout import most_bytes

TRIES = 5
TIMEOUT_S = 30
_CHUNK = 2**20
_log = logging.getLogger("inflate3d")


class Unreachable(InputError):
    """The place did not answer, or broke off again and again."""


class BrokenOff(Exception):
    """A transfer ended early; what came is kept."""


class Source(Protocol):
    """A directory elsewhere."""

    url: str

    def open(self, name: str, start: int) -> tuple[int, int | None, Iterator[bytes]]:
        """Return (where the bytes begin, size of the whole file if known, the bytes from there on).

        InputError if there is no such file; BrokenOff, also from the bytes, if another try may help.
        """


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but never from https to anything less."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Return the request to make instead."""
        if req.type == "https" and not newurl.startswith("https://"):
            raise InputError(f"{req.full_url}: redirects to {newurl[:100]!r}, which is not https; refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class HttpSource:
    """A directory behind http(s)://."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        # No file:, ftp: or data:, also not by way of a redirect.
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            *(urllib.request.ProxyHandler(), urllib.request.HTTPHandler(), urllib.request.HTTPSHandler()),
            *(_Redirects(), urllib.request.HTTPErrorProcessor()),
            *(urllib.request.HTTPDefaultErrorHandler(), urllib.request.UnknownHandler()),
        ):
            self._opener.add_handler(handler)

    def open(self, name: str, start: int) -> tuple[int, int | None, Iterator[bytes]]:
        """Ask for a file from a byte on; a server that knows no ranges sends the whole."""
        where = f"{self.url}/{urllib.parse.quote(name)}"
        headers = {"Accept-Encoding": "identity", "User-Agent": "inflate3d"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            answer = self._opener.open(urllib.request.Request(where, headers=headers), timeout=TIMEOUT_S)
        except urllib.error.HTTPError as fault:
            fault.close()
            if fault.code == 416:  # what was kept is as long as the file, or longer
                return self.open(name, 0)
            if fault.code in (408, 429) or fault.code >= 500:
                raise BrokenOff(f"HTTP {fault.code}") from fault
            raise InputError(f"{where}: HTTP {fault.code} {fault.reason}; check the address") from fault
        except (OSError, http.client.HTTPException) as fault:
            raise BrokenOff(_reason(fault)) from fault
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            answer.close()
            raise InputError(f"{where}: arrives compressed, which was not asked for; serve the file as it is")
        length = answer.headers.get("Content-Length")
        begin = start if answer.status == 206 else 0
        total = begin + int(length) if length and length.isdecimal() else None
        return begin, total, _chunks(answer)


class FsspecSource:
    """A directory behind s3:// or whatever else fsspec opens."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        from fsspec.core import url_to_fs

        try:
            self._system, self._path = url_to_fs(
                self.url, use_listings_cache=False, config_kwargs={"connect_timeout": 10, "read_timeout": TIMEOUT_S}
            )
        except ImportError as fault:
            raise InputError(f"{url}: {fault}. For s3: pip install 'inflate3d[s3]'") from fault

    def open(self, name: str, start: int) -> tuple[int, int | None, Iterator[bytes]]:
        """Open a file; its bytes are asked for range by range."""
        path = f"{self._path}/{name}"
        try:
            size = int(self._system.info(path)["size"])
        except FileNotFoundError as fault:
            raise InputError(f"{self.url}/{name}: no such file; check the address") from fault
        except PermissionError as fault:
            raise InputError(f"{self.url}/{name}: {_reason(fault)}; check your credentials") from fault
        except Exception as fault:  # botocore, aiohttp and sockets raise dozens of kinds
            raise BrokenOff(_reason(fault)) from fault
        begin = start if start < size else 0
        return begin, size, self._ranges(path, begin, size)

    def _ranges(self, path: str, begin: int, size: int) -> Iterator[bytes]:
        step = 8 * _CHUNK
        for first in range(begin, size, step):
            try:
                yield self._system.cat_file(path, start=first, end=min(first + step, size))
            except Exception as fault:
                raise BrokenOff(_reason(fault)) from fault


def source_of(url: str) -> Source:
    """Return what reads a remote directory."""
    return HttpSource(url) if url.startswith(("http://", "https://")) else FsspecSource(url)


def read_small(source: Source, name: str) -> bytes:
    """Return a small file whole. Unreachable, or InputError if it is absent or larger than its kind may be."""
    limit = most_bytes(name)

    def attempt() -> bytes:
        _, total, chunks = source.open(name, 0)
        content = b""
        for chunk in chunks:
            content += chunk
            if len(content) > limit:
                raise InputError(f"{source.url}/{name}: larger than the {limit} bytes that it may have; refused")
        if total is not None and len(content) < total:
            raise BrokenOff(f"{len(content)} of {total} bytes came")
        return content

    failures = 0
    while True:
        try:
            return attempt()
        except BrokenOff as fault:
            failures = _wait(failures, f"{source.url}/{name}", fault)


def fetch(source: Source, name: str, partial: Path, sha256: str) -> None:
    """Bring a file into `partial`, going on with what is there. InputError, and `partial` gone, if its hash differs."""
    if partial.exists() and sha256_of(partial) == sha256:
        return
    # What was kept may be of another version of the file: a joined one gets a second chance, from its first byte.
    for _ in range(2):
        is_joined = _transfer(source, name, partial)
        if (found := sha256_of(partial)) == sha256:
            return
        partial.unlink()
        if not is_joined:
            break
    raise InputError(
        f"{source.url}/{name}: what came has sha256 {found[:16]}..., SHA256SUMS says {sha256[:16]}...; it was deleted. "
        "Damaged on the way, or being replaced just now: load again. If it stays, tell its publisher"
    )


def sha256_of(file: Path) -> str:
    """Return a file's sha256 in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _transfer(source: Source, name: str, partial: Path) -> bool:
    """Bring the whole file; return whether it came in more than one part."""
    failures, is_joined = 0, partial.exists()
    with tqdm(desc=name, unit="B", unit_scale=True, unit_divisor=1024, disable=None, leave=False) as bar:
        while True:
            before = partial.stat().st_size if partial.exists() else 0
            try:
                _stream(source, name, partial, before, bar)
                return is_joined
            except BrokenOff as fault:
                is_joined = True
                after = partial.stat().st_size if partial.exists() else 0
                failures = _wait(0 if after > before else failures, f"{source.url}/{name}", fault)


def _stream(source: Source, name: str, partial: Path, start: int, bar: tqdm) -> None:
    begin, total, chunks = source.open(name, start)
    limit = most_bytes(name)
    if total is not None and total > limit:
        raise InputError(f"{source.url}/{name}: {total} bytes; {name} may have at most {limit}; refused")
    if total is not None and total - begin > (free := shutil.disk_usage(partial.parent).free):
        raise InputError(
            f"{partial.parent}: {name} needs {total - begin} bytes, {free} are free; free space, or cache_dir="
        )
    bar.reset(total)
    bar.update(begin)
    done = begin
    with partial.open("r+b" if begin else "wb") as file:
        file.seek(begin)
        file.truncate()
        for chunk in chunks:
            done += len(chunk)
            if done > limit:
                raise InputError(f"{source.url}/{name}: more than {limit} bytes came; refused")
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and done < total:
        raise BrokenOff(f"{done} of {total} bytes came")


def _chunks(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    with answer:
        while True:
            try:
                chunk = answer.read(_CHUNK)
            except (OSError, http.client.HTTPException) as fault:
                if isinstance(fault, http.client.IncompleteRead) and fault.partial:
                    yield fault.partial
                raise BrokenOff(_reason(fault)) from fault
            if not chunk:
                return
            yield chunk


def _wait(failures: int, where: str, fault: Exception) -> int:
    """Count one more failure and wait a little. Unreachable if that was the last try."""
    if failures + 1 >= TRIES:
        raise Unreachable(f"{where}: cannot be read after {TRIES} tries ({fault}); load again to go on from there")
    _log.info("%s: %s; trying again", where, fault)
    time.sleep(0.1 * 2**failures)
    return failures + 1


def _reason(fault: BaseException) -> str:
    reason = getattr(fault, "reason", None) or fault
    return " ".join(str(reason).split())[:200] or type(fault).__name__
