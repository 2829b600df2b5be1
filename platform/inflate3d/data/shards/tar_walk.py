"""Walks a tar from its first byte to its last, local or remote, once: its members with their places, and its sha256.

Nothing is written and nothing followed: a link, a device, a name that leaves the folder, a damaged header, a tar cut
short and tars put one behind the other are InputErrors. Folders, and what is of no sample, are passed over.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from inflate3d.errors import InputError
from inflate3d.remote.address import Address, is_remote, shown
from inflate3d.remote.client import pieces

_STEP = 8 * 2**20
_BLOCK = 512
# Left by macOS, by tars that were unpacked without knowing PAX, by WebDataset itself, and hidden files and folders.
_LITTER = re.compile(
    r"(^|/)(\.(?!\.?(/|$))|__MACOSX(/|$)|PaxHeaders?(\.[^/]*)?(/|$)|@(LongLink|PaxHeader)$|__[^/.]*__(/|$))"
)


class Found(NamedTuple):
    """One member: name, where its bytes begin, and the bytes."""

    name: str
    offset: int
    content: bytes


class TarWalk:
    """Iterate once over its members; then `bytes` and `sha256` are those of the whole file.

    litter: the names of members that were passed over.
    """

    def __init__(self, folder: str, file: str) -> None:
        self.where = shown(folder, file)
        self._source = _Hashing(_pieces(folder, file))
        self.bytes, self.sha256 = 0, ""
        self.litter: list[str] = []

    def __iter__(self) -> Iterator[Found]:
        class Header(tarfile.TarInfo):
            """Keeps the block that was read last, since tarfile does not tell a damaged header from the tar's end."""

            last = b""

            @classmethod
            def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Header:
                Header.last = bytes(buf)
                return super().frombuf(buf, encoding, errors)

        try:
            with tarfile.open(fileobj=self._source, mode="r|", tarinfo=Header) as tar:  # type: ignore[call-overload]
                while (info := tar.next()) is not None:
                    yield from self._found(tar, info)
                self._source.drain()
                self._check_end(tar.offset, Header.last)  # type: ignore[attr-defined]
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
        self._check_member(info)
        if is_litter(info.name):
            self.litter.append(info.name)
            return
        handle = tar.extractfile(info)
        assert handle is not None, info.name
        content = handle.read()
        if len(content) != info.size:
            raise InputError(f"{self.where}: member {info.name!r} is cut short")
        yield Found(info.name, info.offset_data, content)

    def _check_member(self, info: tarfile.TarInfo) -> None:
        if info.name.startswith("/") or ".." in info.name.split("/"):
            kind, remedy = "a name outside the folder", "write the tar again without it"
        elif is_litter(info.name):
            return
        elif info.issym() or info.islnk():
            kind = f"no plain file but a link to {info.linkname!r}"
            remedy = "write the tar again with tar --dereference --hard-dereference"
        elif info.issparse():
            kind, remedy = "no plain file but a sparse one", "write the tar again without --sparse"
        elif not info.isreg():
            kind, remedy = "no plain file", "write the tar again without it"
        else:
            return
        raise InputError(f"{self.where}: member {info.name!r} is {kind}; {remedy}")

    def _check_end(self, end: int, block: bytes) -> None:
        """tarfile takes a damaged header, and a cut between two members, for the end: look for yourself."""
        if self._source.bytes < end + _BLOCK:
            raise InputError(f"{self.where}: ends without the mark of a tar's end; it was cut short at {end}")
        if self._source.last_byte >= end and not block.strip(b"\0"):
            raise InputError(
                f"{self.where}: ends at byte {end}, and more follows: tars put one behind the other, or a part that "
                "was lost. Index them apart, or join them with tar --concatenate"
            )
        if self._source.last_byte >= end:
            raise InputError(f"{self.where}: damaged header at byte {end}")


def tar_sha256(folder: str, file: str) -> str:
    """Return the sha256 of a tar's bytes, read once."""
    source = _Hashing(_pieces(folder, file))
    source.drain()
    return source.digest.hexdigest()


def is_litter(name: str) -> bool:
    """Whether a member belongs to no sample: hidden, metadata of macOS, PAX or WebDataset, or without an ending.

    WebDataset's readers pass over what has no ending too, or nothing before it.
    """
    return _LITTER.search(name) is not None or "." not in name.rpartition("/")[2].lstrip(".")


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


def _pieces(folder: str, file: str) -> Iterator[bytes]:
    return pieces(Address.parse(folder) / file) if is_remote(folder) else _local(shown(folder, file))


def _local(path: str) -> Iterator[bytes]:
    with Path(path).open("rb") as file:
        while content := file.read(_STEP):
            yield content
