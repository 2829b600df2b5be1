"""Walks a tar from its first byte to its last, local or remote, once: its members with their places, and its sha256.

Nothing is written and nothing followed: a link, a device, a name that leaves the folder, a damaged header and a tar cut
short are InputErrors.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from inflate3d.errors import InputError
from inflate3d.remote.address import Address, is_remote, shown
from inflate3d.remote.client import pieces

_STEP = 8 * 2**20
_BLOCK = 512


class Found(NamedTuple):
    """One member: name, where its bytes begin, and the bytes."""

    name: str
    offset: int
    content: bytes


class TarWalk:
    """Iterate once over its members; then `bytes` and `sha256` are those of the whole file."""

    def __init__(self, folder: str, file: str) -> None:
        self.where = shown(folder, file)
        self._source = _Hashing(pieces(Address.parse(folder) / file) if is_remote(folder) else _local(self.where))
        self.bytes, self.sha256 = 0, ""

    def __iter__(self) -> Iterator[Found]:
        try:
            with tarfile.open(fileobj=self._source, mode="r|") as tar:  # type: ignore[call-overload]
                while (info := tar.next()) is not None:
                    yield from self._found(tar, info)
                self._source.drain()
                self._check_end(tar.offset)  # type: ignore[attr-defined]
        except (tarfile.TarError, EOFError, OverflowError, ValueError) as fault:
            if isinstance(fault, InputError):
                raise
            packed = self._source.first[:2] == b"\x1f\x8b" or self._source.first[:4] == b"\x28\xb5\x2f\xfd"
            hint = "it is compressed, which has no random access: unpack it" if packed else str(fault)
            raise InputError(f"{self.where}: not a readable tar ({hint})") from fault
        except OSError as fault:
            raise InputError(f"{self.where}: {fault.strerror}") from fault
        self.bytes, self.sha256 = self._source.bytes, self._source.digest.hexdigest()

    def _found(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[Found]:
        tar.members.clear()  # type: ignore[attr-defined]  # else a long tar's headers are all kept
        if info.isdir():
            return
        parts = info.name.split("/")
        if not info.isreg() or info.issparse() or ".." in parts or info.name.startswith("/"):
            kind = "no plain file" if not info.isreg() or info.issparse() else "a name outside the folder"
            raise InputError(f"{self.where}: member {info.name!r} is {kind}; write the tar again without it")
        handle = tar.extractfile(info)
        assert handle is not None, info.name
        content = handle.read()
        if len(content) != info.size:
            raise InputError(f"{self.where}: member {info.name!r} is cut short")
        yield Found(info.name, info.offset_data, content)

    def _check_end(self, end: int) -> None:
        """tarfile takes a damaged header, and a cut between two members, for the end: look for yourself."""
        if self._source.bytes < end + _BLOCK:
            raise InputError(f"{self.where}: ends without the mark of a tar's end; it was cut short at {end}")
        if self._source.last_byte >= end:
            raise InputError(f"{self.where}: damaged header at byte {end}")


class _Hashing:
    """A file read once from front to back: counts and hashes, and notes where the last byte stands that is not 0."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._piece = pieces, memoryview(b"")
        self.digest, self.bytes, self.last_byte, self.first = hashlib.sha256(), 0, -1, b""

    def read(self, size: int) -> bytes:
        if not self._piece:
            self._piece = memoryview(next(self._pieces, b""))
        content, self._piece = bytes(self._piece[:size]), self._piece[size:]
        self.first = self.first or content[:8]
        self.digest.update(content)
        if (filled := len(content.rstrip(b"\0"))) > 0:
            self.last_byte = self.bytes + filled - 1
        self.bytes += len(content)
        return content

    def drain(self) -> None:
        while self.read(_STEP):
            pass


def _local(path: str) -> Iterator[bytes]:
    with Path(path).open("rb") as file:
        while content := file.read(_STEP):
            yield content
