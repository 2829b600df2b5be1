"""What a published directory may hold, checked before it is read: plain files, bounded, with the stated hashes."""

from __future__ import annotations

import re
from pathlib import Path

from inflate3d.errors import InputError
from inflate3d.files import file_sha256
from inflate3d.models.publication.layout import (
    CARD,
    CONFIG,
    HEADS,
    MOST_FILES,
    PICTURE,
    PRIVATE,
    REPLAY,
    SUMS,
    WEIGHTS,
    is_file_name,
    most_bytes,
)

_READ = (CONFIG, WEIGHTS, REPLAY, HEADS, CARD, PICTURE, PRIVATE)
_NEEDED = (CONFIG, WEIGHTS, REPLAY)
_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")


class Changed(InputError):
    """A file differs from what SHA256SUMS states."""

    def __init__(self, message: str, file: Path) -> None:
        super().__init__(message)
        self.file = file


def parse_sums(text: str, *, where: str) -> dict[str, str]:
    """Return the sha256 of each file of a publication, from its SHA256SUMS.

    Files that this version does not know are left out: they are neither fetched nor opened. InputError for a line that
    is not a hash and a plain name, for a name that comes twice, and for a needed file that is not listed.
    """
    lines = re.split(r"\r?\n", text.rstrip("\r\n"))
    if len(lines) > MOST_FILES:
        raise InputError(f"{where}: {len(lines)} lines; a publication has at most {MOST_FILES} files")
    found: dict[str, str] = {}
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None or not is_file_name(match[2]) or match[2] in found:
            raise InputError(f"{where}: {line[:100]!r} does not name a file of the directory")
        found[match[2]] = match[1]
    if missing := [name for name in _NEEDED if name not in found]:
        raise InputError(f"{where}: {missing[0]} is not listed; publish or download the directory again")
    return {name: sha256 for name, sha256 in found.items() if name in _READ}


def check_files(folder: Path) -> dict[str, str]:
    """Compare the files of a publication with its SHA256SUMS, and return what that says.

    InputError names what is missing, not listed, no plain file, or too large; Changed names the first file that has
    changed.
    """
    sums = plain_file(folder, SUMS)
    stated = parse_sums(sums.read_text(encoding="utf-8", errors="replace"), where=str(sums))
    if unlisted := [name for name in _READ if name not in stated and (folder / name).exists()]:
        raise InputError(
            f"{sums}: {unlisted[0]} lies there, but is not listed; publish or download the directory again"
        )
    for name, expected in stated.items():
        file = plain_file(folder, name)
        if (found := file_sha256(file)) != expected:
            raise Changed(f"{file} has changed: sha256 {found[:16]}..., {SUMS} says {expected[:16]}...", file)
    return stated


def plain_file(folder: Path, name: str) -> Path:
    """Return a file of a directory. InputError if it is absent, no regular file, larger than its kind may be, or a link
    that leads out of the directory (the Hub's cache alone links to the blobs beside it)."""
    file = folder / name
    if not file.exists():
        raise InputError(f"{file} is missing; publish or download the directory again")
    if not file.is_file():
        raise InputError(f"{file} is no regular file; publish or download the directory again")
    target, home = file.resolve(), folder.resolve()
    if target.parent not in (home, _blobs(home)):
        raise InputError(f"{file} is a link out of the directory, to {target}; copy the file itself there")
    if (size := target.stat().st_size) > most_bytes(name):
        raise InputError(f"{file} has {size} bytes; {name} may have at most {most_bytes(name)}")
    return file


def _blobs(folder: Path) -> Path | None:
    """Where the links of a snapshot in the Hub's cache lead; None for any other folder."""
    return folder.parents[1] / "blobs" if folder.parent.name == "snapshots" else None
