"""One try at a file over http(s), by the standard library: half the time of an asynchronous client for whole shards.

Redirects and the proxies of the environment are followed; nothing leads from https to less, or out of http(s).
"""

from __future__ import annotations

import email.utils
import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NoReturn

from inflate3d.errors import InputError
from inflate3d.remote.address import Address, scrubbed
from inflate3d.remote.outcomes import Absent, Interrupted, Refused

TIMEOUT_S = 30  # without a byte; the budget for outages, where that is shorter
ENOUGH = 2**16  # bytes within two timeouts: a server that trickles never lets a single read time out
_PIECE = 2**20
_LATER, _ABSENT = (408, 409, 421, 423, 425, 429), (404, 410)


@contextmanager
def open_http(
    address: Address, start: int, stop: int | None, *, timeout_s: float
) -> Iterator[tuple[int | None, Iterator[bytes]]]:
    """Give (size of the whole file if told, its bytes start..stop as they arrive).

    Fewer bytes come where the file ends before. Absent, Refused; Interrupted, also from the bytes, if another try may
    help.
    """
    headers = {"Accept-Encoding": "identity", "User-Agent": "inflate3d"}
    if start or stop is not None:
        headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
    request = urllib.request.Request(address.url, headers=headers)
    if (authorization := address.authorization) is not None:
        request.add_unredirected_header("Authorization", authorization)
    try:
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=_tls()), _Redirects)
        answer = opener.open(request, timeout=timeout_s)
    except urllib.error.HTTPError as fault:
        fault.close()
        if fault.code == 416:  # the file ends before
            yield None, iter(())
            return
        _raise_status(address, fault)
    except (OSError, http.client.HTTPException) as fault:
        _raise_broken(address, fault)
    with answer:
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise InputError(f"{address}: arrives compressed, which was not asked for; serve the file as it is")
        begin, total = _place(answer, start)
        pieces = _arriving(address, answer, timeout_s)
        yield total, _cut(pieces, start - begin, None if stop is None else stop - begin)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects within http(s), never from https to less; credentials go to the same host alone."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Return the request to make instead."""
        target = Address.parse(newurl)
        if not target.is_http or (req.type, target.scheme) == ("https", "http"):
            kind = "https" if req.type == "https" else "http(s)"
            raise InputError(f"{scrubbed(req.full_url)}: redirects to {target}, which is not {kind}; refused")
        request = super().redirect_request(req, fp, code, msg, headers, target.url)
        known = req.unredirected_hdrs.get("Authorization")
        if request is not None and known and target.host == req.host:
            request.add_unredirected_header("Authorization", known)
        return request


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()  # reads the system's certificates, some 20 ms


def _raise_status(address: Address, fault: urllib.error.HTTPError) -> NoReturn:
    told = f"HTTP {fault.code} {scrubbed(fault.reason)}".strip()
    if fault.code in _LATER or fault.code >= 500:
        raise Interrupted(told, _retry_after_s(fault.headers)) from fault
    if fault.code in _ABSENT:
        raise Absent(f"{address}: no such file ({told}); check the address") from fault
    # Stores say 400 too where a token has expired.
    raise Refused(f"{address}: {told}; check your credentials, and whether a signed address has expired") from fault


def _raise_broken(address: Address, fault: Exception) -> NoReturn:
    reason = getattr(fault, "reason", None) or fault
    told = scrubbed(reason) or type(fault).__name__
    if isinstance(reason, ssl.SSLCertVerificationError):
        raise Refused(f"{address}: {told}") from fault
    raise Interrupted(told) from fault


def _retry_after_s(headers: Any) -> float:
    """Return what Retry-After says, as seconds from now: a number, or a date."""
    told = (headers.get("Retry-After") or "").strip()
    if told.isdecimal():
        return float(told)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(told).timestamp() - time.time())
    except ValueError:
        return 0.0


def _place(answer: Any, start: int) -> tuple[int, int | None]:
    """Return (where the answer's bytes begin in the file, size of the file if told).

    A server that knows no ranges sends the whole; one that keeps blocks may begin before what was asked for.
    """
    begin, length = start if answer.status == 206 else 0, _number(answer.headers.get("Content-Length"))
    total = None if length is None else begin + length
    if answer.status == 206 and (told := answer.headers.get("Content-Range", "")).startswith("bytes "):
        place, _, whole = told.removeprefix("bytes ").partition("/")
        begin, total = _number(place.partition("-")[0]) or 0, _number(whole)
    if begin > start:
        raise Interrupted(f"bytes from {begin} on came, asked for were those from {start}")
    return begin, total


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) < 20 else None


def _arriving(address: Address, answer: Any, timeout_s: float) -> Iterator[bytes]:
    count, since, waited_s = 0, 0, 0.0
    while True:
        begun = time.monotonic()
        try:
            piece = answer.read1(_PIECE)
        except (OSError, http.client.HTTPException) as fault:
            _raise_broken(address, fault)
        if not piece:
            break
        waited_s += time.monotonic() - begun
        count += len(piece)
        yield piece
        if count - since >= ENOUGH:
            since, waited_s = count, 0.0
        elif waited_s > 2 * timeout_s:
            raise Interrupted(f"timed out: {count - since} bytes in {waited_s:.0f} s")
    promised = _number(answer.headers.get("Content-Length"))
    if promised not in (None, count):
        raise Interrupted(f"{count} of {promised} bytes came")


def _cut(pieces: Iterator[bytes], first: int, stop: int | None) -> Iterator[bytes]:
    """Yield the bytes first..stop of what arrives."""
    offset = 0
    for piece in pieces:
        if part := piece[max(first - offset, 0) : None if stop is None else max(stop - offset, 0)]:
            yield part
        offset += len(piece)
        if stop is not None and offset >= stop:
            return
