"""Byte ranges over http(s), by the standard library: half the time of an asynchronous client for whole shards.

Redirects and the proxies of the environment are followed. What fails raises OSError (FileNotFoundError for an answer
400 to 499), for the caller to try again.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

_PIECE = 2**20
_MOST_S, _STEP = 120, 8 * 2**20  # for so many bytes: a server that trickles never lets a single read time out


def read_http(url: str, start: int | None, stop: int | None, *, timeout_s: float) -> bytes:
    """Return a file, or its bytes start..stop; fewer where it ends before."""
    return b"".join(pieces_http(url, start, stop, timeout_s=timeout_s))


def pieces_http(url: str, start: int | None, stop: int | None, *, timeout_s: float) -> Iterator[bytes]:
    """Yield what read_http returns, as it arrives."""
    begin = start or 0
    header = {} if start is None and stop is None else {"Range": f"bytes={begin}-{'' if stop is None else stop - 1}"}
    try:
        answer = _opened(urllib.request.Request(url, headers=header), timeout_s)
    except urllib.error.HTTPError as fault:
        if fault.code == 416:  # the file ends before
            return
        raise
    with answer:
        if answer.status != 200:
            yield from _arriving(answer, url)
            return
        offset = 0  # a server that knows no ranges sends the whole
        for piece in _arriving(answer, url):
            yield piece[max(begin - offset, 0) : None if stop is None else max(stop - offset, 0)]
            offset += len(piece)


def size_http(url: str, *, timeout_s: float) -> int | None:
    """Return a file's bytes; None if the server does not tell."""
    with _opened(urllib.request.Request(url, headers={"Range": "bytes=0-0"}), timeout_s) as answer:
        told = answer.headers.get("Content-Range", "").rpartition("/")[2]
        told = answer.headers.get("Content-Length", "") if answer.status == 200 else told
    return int(told) if told.isdigit() else None


def _opened(request: urllib.request.Request, timeout_s: float) -> Any:
    try:
        return urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as fault:
        if 400 <= fault.code < 500 and fault.code not in (408, 416, 425, 429):
            raise FileNotFoundError(f"{fault.code} {fault.reason}") from fault
        raise


def _arriving(answer: Any, url: str) -> Iterator[bytes]:
    count, since, begun = 0, 0, time.monotonic()
    while piece := answer.read1(_PIECE):
        count += len(piece)
        yield piece
        if count - since >= _STEP:
            since, begun = count, time.monotonic()
        elif time.monotonic() > begun + _MOST_S:
            raise TimeoutError(f"{url}: {count - since} bytes in {_MOST_S} s")
    promised = answer.headers.get("Content-Length", "")
    if promised.isdigit() and count != int(promised):
        raise OSError(f"{count} of {promised} bytes arrived")
