"""Byte ranges over http(s), by the standard library: half the time of an asynchronous client for whole shards.

Redirects and the proxies of the environment are followed. What fails raises OSError (FileNotFoundError for an answer
400 to 499), for the caller to try again.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from typing import Any

_PIECE = 2**20
_MOST_S = 120  # for one range: a server that trickles never lets a single read time out


def read_http(url: str, start: int | None, stop: int | None, *, timeout_s: float) -> bytes:
    """Return a file, or its bytes start..stop; fewer where it ends before."""
    begin = start or 0
    header = {} if start is None and stop is None else {"Range": f"bytes={begin}-{'' if stop is None else stop - 1}"}
    try:
        answer = _opened(urllib.request.Request(url, headers=header), timeout_s)
    except urllib.error.HTTPError as fault:
        if fault.code == 416:  # the file ends before
            return b""
        raise
    with answer:
        content = _whole(answer, url)
    # A server that knows no ranges answers 200 and sends the whole.
    return content[begin:stop] if header and answer.status == 200 else content


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


def _whole(answer: Any, url: str) -> bytes:
    deadline, pieces = time.monotonic() + _MOST_S, []
    while piece := answer.read1(_PIECE):
        pieces.append(piece)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{url}: {sum(map(len, pieces))} bytes in {_MOST_S} s")
    content = b"".join(pieces)
    promised = answer.headers.get("Content-Length", "")
    if promised.isdigit() and len(content) != int(promised):
        raise OSError(f"{len(content)} of {promised} bytes arrived")
    return content
