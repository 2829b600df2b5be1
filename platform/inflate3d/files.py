"""Files written whole or not at all, with a hash over themselves, and faults of a disk as one clear error."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from inflate3d.errors import InputError

SEAL = "sha256"
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
        where = fault.filename or folder
        raise InputError(f"{where}: {fault.strerror}; {free:.1f} MB are free there. {remedy}") from fault


@contextmanager
def told_where(path: Path) -> Iterator[None]:
    """Give an OSError without a file's name, as writing and flushing raise, this one: the command shows it."""
    try:
        yield
    except OSError as fault:
        if fault.filename is None and fault.errno is not None:
            raise type(fault)(fault.errno, fault.strerror, str(path)) from fault
        raise


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that a crash or a power cut leaves the old one or the new one, never a part; text as UTF-8."""
    temporary = path.with_name(f".tmp-{path.name}")
    with told_when_full(path.parent, "Free some and run the same command again"), told_where(path):
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with told_where(path):
            os.fsync(descriptor)
    except OSError as fault:
        if fault.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that flushes no folders
            raise
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(content: Mapping[str, Any]) -> bytes:
    """Return a JSON file's bytes whose last key holds the sha256 of the file without that key."""
    seal = hashlib.sha256(_json(content)).hexdigest()
    return _json({**content, SEAL: seal})


def unsealed(
    raw: bytes, *, keys: Collection[str], parse: Callable[[bytes], Any] = json.loads
) -> tuple[dict[str, Any], bool]:
    """Return (content, whether it carried a seal) of a file's bytes. ValueError says what is wrong with them.

    parse: from the bytes to the content, where that is faster than json.loads. What an older version wrote has no seal,
    and these keys alone: a seal whose name was damaged is none of them.
    """
    if not raw.strip(b"\0"):
        raise ValueError("it is empty" if not raw else "it holds zeros")
    try:
        content = parse(raw)
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"not valid JSON ({' '.join(str(fault).split())})") from fault
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    if SEAL in content:
        del content[SEAL]
        if not _has_its_seal(raw):
            raise ValueError("it differs from what was written (sha256)")
        return content, True
    if strange := sorted(set(content) - set(keys)):
        raise ValueError(f"unknown key {strange[0]!r}")
    return content, False


def _has_its_seal(raw: bytes) -> bool:
    """Whether a file ends with the hash of its own text, as `sealed` writes it."""
    opening, closing = f',\n "{SEAL}": "'.encode(), b'"\n}'
    end = len(raw) - len(closing) - 64
    text = memoryview(raw)[: end - len(opening)]
    digest = hashlib.sha256(text)
    digest.update(b"\n}")
    return raw[len(text) :] == opening + digest.hexdigest().encode() + closing


def read_sealed(path: Path, *, keys: Collection[str], remedy: str) -> dict[str, Any]:
    """Return a JSON file's content, without its seal. InputError names the file, what is wrong and the remedy."""
    try:
        return unsealed(path.read_bytes(), keys=keys)[0]
    except ValueError as fault:
        raise InputError(f"{path}: damaged: {fault}. {remedy}") from fault


def set_aside(path: Path) -> Path:
    """Give a damaged file another name beside its own, so that a new one can be begun; return it."""
    number = 0
    while (other := path.with_name(f"{path.name}.damaged{number or ''}")).exists():
        number += 1
    path.rename(other)
    with suppress(OSError):
        flush(path.parent)
    return other


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, allow_nan=False).encode()
