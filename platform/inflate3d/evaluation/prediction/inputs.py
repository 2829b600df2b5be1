"""Raw files to predict on: the cases that a path holds, and each as a shard would hold it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inflate3d.contracts import AbstractMedium, DatasetCard, medium_of
from inflate3d.data.raw.keys import key_of
from inflate3d.data.shards.members import decode_members, encode_sample
from inflate3d.discover import plug_ins
from inflate3d.errors import InputError, close_names


@dataclass(frozen=True)
class InputCase:
    """One case. key: what its answer is called. files: one a channel, one clip, or a DICOM series."""

    key: str
    files: tuple[Path, ...]


def media_in(path: Path) -> set[str]:
    """Return the media that a file or folder holds. InputError where it is missing or holds none.

    Files are not searched in subfolders; where there are none, DICOM series are, at any depth.
    """
    _require(path)
    media: dict[str, AbstractMedium] = {name: plug_in.load()() for name, plug_in in plug_ins("media").items()}
    found = {name for name, medium in media.items() if _files(path, medium)}
    if not found and path.is_dir():
        found = {name for name, medium in media.items() if medium.has_folders(path)}
    if found:
        return found
    allowed = ", ".join(suffix for medium in media.values() for suffix in medium.suffixes)
    if path.is_dir():
        raise InputError(
            f"--input: {path} holds no DICOM series and no file that ends in one of {allowed} "
            "(for those, folders below it are not searched)"
        )
    kinds = " nor ".join(media)
    raise InputError(f"--input: {path} is neither {kinds}; allowed: {allowed}, or a folder of DICOM slices")


def find_cases(path: Path, card: DatasetCard) -> list[InputCase]:
    """Return the cases of a path that holds what the card's medium takes (see `media_in`), by name.

    InputError if two would be called the same, or nothing below the path is an image.
    """
    medium = medium_of(card)
    files = _files(path, medium)
    if not files:
        if not (found := medium.folders_of(path)):
            raise InputError(f"--input: {path} holds DICOM files, but none of an image that can be a volume")
        return [InputCase(key, parts) for key, parts in found]
    first: dict[str, InputCase] = {}
    for key, parts in medium.files_of(files, card):
        case = InputCase(key, parts)
        if (other := first.setdefault(case.key, case)) is not case:
            names = f"{other.files[0].name} and {case.files[0].name}"
            raise InputError(f"--input: {names} would both be called {case.key!r}; rename one of them")
    return list(first.values())


def read_case(case: InputCase, card: DatasetCard) -> tuple[dict[str, Any], DatasetCard]:
    """Return the members of a case as a shard gives them, by the same code, and the card without its targets.

    InputError if the case is unreadable or is not what the card promises.
    """
    card = replace(card, targets={})
    raw = medium_of(card).read(case.files, card, where=case.key)
    encoded = encode_sample(raw, card, key=key_of(case.key))
    return decode_members({suffix: memoryview(bytearray(content)) for suffix, content in encoded.items()}), card


def _files(path: Path, medium: AbstractMedium) -> list[Path]:
    candidates = sorted(path.iterdir()) if path.is_dir() else [path]
    # A link to what is not there is a case that cannot be read, not one less.
    shown = (p for p in candidates if (p.is_file() or not p.exists()) and not p.name.startswith("."))
    return [p for p in shown if medium.suffix_of(p.name)]


def _require(path: Path) -> None:
    if path.exists():
        return
    close = close_names(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
    hint = f"; close names: {', '.join(map(repr, close))}" if close else ""
    raise InputError(f"--input: no file or folder {str(path)!r}{hint}")
