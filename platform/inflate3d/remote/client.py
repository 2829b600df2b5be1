"""The one client for what lies elsewhere: reads, ranges, and downloads that go on where they broke.

What fails is tried again, longer and longer apart and as Retry-After says, until `outage_s` seconds have passed without
progress: then it is Unreachable. Absent, Refused and Damaged are final, as is whatever exceeds its limit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from tqdm.auto import tqdm

from inflate3d.errors import InputError
from inflate3d.remote.address import Address
from inflate3d.remote.http import ENOUGH, TIMEOUT_S, open_http
from inflate3d.remote.outcomes import Damaged, Interrupted, Unreachable
from inflate3d.remote.patience import Patience
from inflate3d.remote.store import list_store, open_store


def read(
    address: Address, *, limit: int, outage_s: float | None = None, fault: Callable[[bytes], str | None] | None = None
) -> bytes:
    """Return a whole file, of `limit` bytes at the most.

    fault: says what is wrong with its content, if anything is. Such an answer may be cut, or be some proxy's, so it is
    asked for again as during an outage; Damaged if it stays.
    """
    patience = Patience(address, outage_s)
    while True:
        content = b"".join(piece for _, piece in _arriving(address, limit=limit, outage_s=outage_s))
        if fault is None or (told := fault(content)) is None:
            return content
        try:
            patience.wait(Interrupted(told))
        except Unreachable as end:
            raise Damaged(f"{address}: damaged: {told}; so it was at each of {patience.failures} tries") from end


def pieces(address: Address, *, outage_s: float | None = None) -> Iterator[bytes]:
    """Yield a whole file as it arrives, from its first byte to its last."""
    return (piece for _, piece in _arriving(address, outage_s=outage_s) if piece)


def size(address: Address, *, outage_s: float | None = None) -> int | None:
    """Return a file's bytes; None if the server does not tell."""
    for total, _ in _arriving(address, stop=1, outage_s=outage_s):
        return total
    raise AssertionError("unreachable")


def names(folder: Address, pattern: str, *, outage_s: float | None = None) -> list[str]:
    """Return the names of a folder's files that match, sorted. InputError for web servers, which list none."""
    if folder.is_http:
        raise InputError(f"{folder}: a web server lists no files; write the numbers: {folder}/train-{{000..099}}.tar")
    patience, timeout_s = Patience(folder, outage_s), _timeout_s(outage_s)
    while True:
        try:
            return list_store(folder, pattern, timeout_s=timeout_s)
        except Interrupted as fault:
            patience.wait(fault)


def download(
    address: Address, path: Path, *, partial: Path, sha256: str, limit: int, outage_s: float | None = None
) -> None:
    """Bring a file to `path`, whole and of this hash, or not at all; `partial` keeps what came of it until then."""
    try:
        with partial.open("a+b") as file:
            fetch_into(file, address, sha256=sha256, limit=limit, outage_s=outage_s, progress=True)
    except Damaged:
        partial.unlink()
        raise
    partial.replace(path)


def fetch_whole(address: Address, path: Path, *, limit: int) -> None:
    """Bring a file of which nobody states a hash; it is whole as far as its server tells the size."""
    with path.open("wb") as file, tqdm(desc=address.name, unit="B", unit_scale=True, disable=None) as bar:
        for total, piece in _arriving(address, limit=limit):
            if bar.total is None and total is not None:
                bar.total = total
                _check_room(file, address, total)
            file.write(piece)
            bar.update(len(piece))
        file.flush()
        os.fsync(file.fileno())


def fetch_into(
    file: BinaryIO,
    address: Address,
    *,
    sha256: str,
    limit: int,
    size: int | None = None,
    outage_s: float | None = None,
    progress: bool = False,
) -> None:
    """Bring a file into an open one, going on at its end, to the disk. Damaged, and it is empty, if its hash differs.

    What was kept may be of another version, and a byte may flip on the way: it gets a second chance from the start.
    size: what the file must have, if that is known; an answer of another size is no damage, but asked for again.
    """
    for _ in range(2):
        found = _append(file, address, sha256, limit, size, outage_s, progress)
        if found == sha256:
            file.flush()
            os.fsync(file.fileno())
            return
        file.truncate(0)
    raise Damaged(
        f"{address}: what came has sha256 {found[:16]}..., expected is {sha256[:16]}...; it was deleted. "
        "Damaged on the way, or being replaced just now: try again. If it stays, tell its publisher"
    )


def _append(
    file: BinaryIO,
    address: Address,
    sha256: str,
    limit: int,
    size: int | None,
    outage_s: float | None,
    progress: bool,
) -> str:
    """Append what is missing, if anything is; return the sha256 of the whole."""
    if file.seek(0, os.SEEK_END) > limit:
        file.truncate(limit)
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]
    start = file.tell()
    if digest.hexdigest() == sha256:
        return sha256
    told = dict(unit="B", unit_scale=True, disable=None if progress else True, leave=False)
    with tqdm(desc=address.name, initial=start, **told) as bar:
        for total, piece in _arriving(address, start, limit=limit, size=size, outage_s=outage_s):
            if bar.total is None and total is not None:
                bar.total = total
                _check_room(file, address, total - start)
            file.write(piece)
            digest.update(piece)
            bar.update(len(piece))
    return digest.hexdigest()


def _check_room(file: BinaryIO, address: Address, needed: int) -> None:
    disk = os.fstatvfs(file.fileno())
    if needed > (free := disk.f_bavail * disk.f_frsize):
        raise InputError(f"{address}: needs {needed} bytes, {free} are free; free space, or name another cache_dir")


def _arriving(
    address: Address,
    start: int = 0,
    *,
    stop: int | None = None,
    limit: int | None = None,
    size: int | None = None,
    outage_s: float | None = None,
) -> Iterator[tuple[int | None, bytes]]:
    """Yield (size of the whole if told, bytes) of start..stop, going on where it breaks; first with no bytes."""
    done, open_ = start, open_http if address.is_http else open_store
    patience, timeout_s = Patience(address, outage_s), _timeout_s(outage_s)
    while True:
        begun = done
        try:
            with open_(address, done, stop, timeout_s=timeout_s) as (total, arriving):
                if size is not None and total not in (None, size):
                    raise Interrupted(f"it has {total} bytes there, expected are {size}")
                _check_limit(address, total, limit)
                yield total, b""
                for piece in arriving:
                    if size is not None and done + len(piece) > size:
                        raise Interrupted(f"more than the expected {size} bytes came")
                    done += len(piece)
                    _check_limit(address, done, limit)
                    yield total, piece
            whole = total if size is None else size
            if whole is not None and stop is None and done < whole:
                raise Interrupted(f"{done} of {whole} bytes came")
            return
        except Interrupted as fault:
            patience.wait(fault, progressed=done - begun >= ENOUGH)


def _timeout_s(outage_s: float | None) -> float:
    return TIMEOUT_S if outage_s is None else min(TIMEOUT_S, max(outage_s, 1.0))


def _check_limit(address: Address, count: int | None, limit: int | None) -> None:
    if count is not None and limit is not None and count > limit:
        raise InputError(f"{address}: {count} bytes or more; it may have at most {limit}; refused")
