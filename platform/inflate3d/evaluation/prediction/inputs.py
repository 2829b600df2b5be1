"""Raw files to predict on: the cases that a path holds, and each as a shard would hold it."""

# C channel, D H W voxels along z y x.

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from inflate3d.contracts import DatasetCard, Kind
from inflate3d.data.raw.files import stem
from inflate3d.data.raw.readers import SUFFIXES as VOLUME_SUFFIXES
from inflate3d.data.raw.videos import read_video_case
from inflate3d.data.raw.volumes import read_volume_case
from inflate3d.data.shards.members import VIDEO_SUFFIXES, decode_members, encode_sample
from inflate3d.errors import InputError, close_names

Family = Literal["volume", "video"]
FAMILY_OF: dict[Kind, Family] = {
    "video_classification": "video",
    "volume_segmentation": "volume",
    "volume_classification": "volume",
}
_SUFFIXES: dict[Family, tuple[str, ...]] = {
    "volume": VOLUME_SUFFIXES,
    "video": tuple(f".{suffix}" for suffix in VIDEO_SUFFIXES),
}
_CHANNEL = re.compile(r"(.+)_\d{4}")


@dataclass(frozen=True)
class InputCase:
    """One case. key: what its answer is called. files: one a channel, one clip, or the folder of a DICOM series."""

    key: str
    files: tuple[Path, ...]


def families(path: Path) -> set[Family]:
    """Return what a file or folder holds: volumes, videos or both. InputError where it is missing or holds neither.

    Subfolders are not searched. A folder of DICOM slices counts as a volume.
    """
    _require(path)
    found: set[Family] = {family for family in _SUFFIXES if _files(path, family)}
    if found or (path.is_dir() and _is_dicom(path)):
        return found or {"volume"}
    allowed = ", ".join(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
    if path.is_dir():
        raise InputError(
            f"--input: {path} holds no DICOM series and no file that ends in one of {allowed} "
            "(folders below it are not searched)"
        )
    raise InputError(f"--input: {path} is neither volume nor video; allowed: {allowed}, or a folder of DICOM slices")


def find_cases(path: Path, card: DatasetCard) -> list[InputCase]:
    """Return the cases of a path that holds what the card's kind takes (see `families`), by name.

    One file is one case; where the card has several channels, nnU-Net's CASE_0000, CASE_0001, ... are one. InputError
    if two would be called the same.
    """
    family = FAMILY_OF[card.kind]
    files = _files(path, family)
    if not files:
        return [InputCase(path.resolve().name, (path,))]  # a folder of DICOM slices
    cases = _join_channels(files, len(card.input.channels)) if family == "volume" else _one_each(files, family)
    first: dict[str, InputCase] = {}
    for case in cases:
        if (other := first.setdefault(case.key, case)) is not case:
            names = f"{other.files[0].name} and {case.files[0].name}"
            raise InputError(f"--input: {names} would both be called {case.key!r}; rename one of them")
    return cases


def read_case(case: InputCase, card: DatasetCard) -> dict[str, Any]:
    """Return the members of a case as a shard of the card's dataset gives them, by the same code.

    A label that is unknown is 0. The mask is 1 wherever the volume is, so that its padding can be told from it.
    InputError if the case is unreadable or is not what the card promises.
    """
    if card.kind == "video_classification":
        raw = read_video_case(case.files[0], label=0, where=case.key)
    else:
        raw = read_volume_case(case.files, None, card, where=case.key, label=0)
        assert raw.image is not None
        raw.mask = np.ones(raw.image.shape[1:], np.uint8)
    key = re.sub(r"[^A-Za-z0-9_-]", "_", case.key)[:200]
    encoded = encode_sample(raw, card, key=key)
    return decode_members({suffix: memoryview(bytearray(content)) for suffix, content in encoded.items()})


def _files(path: Path, family: Family) -> list[Path]:
    candidates = sorted(path.iterdir()) if path.is_dir() else [path]
    shown = (p for p in candidates if p.is_file() and not p.name.startswith("."))
    return [p for p in shown if p.name.lower().endswith(_SUFFIXES[family])]


def _one_each(files: list[Path], family: Family) -> list[InputCase]:
    return [InputCase(stem(file, _longest_first(_SUFFIXES[family])), (file,)) for file in files]


def _join_channels(files: list[Path], channels: int) -> list[InputCase]:
    cases = _one_each(files, "volume")
    matches = [_CHANNEL.fullmatch(case.key) for case in cases]
    if channels == 1 or not all(matches):
        return cases
    parts: dict[str, set[Path]] = {}
    for file, match in zip(files, matches, strict=True):
        assert match is not None
        suffix = file.name[len(match[0]) :]
        # All that there should be, so that reading names the one that is missing.
        wanted = {file.with_name(f"{match[1]}_{i:04d}{suffix}") for i in range(channels)}
        parts.setdefault(match[1], set()).update(wanted | {file})
    return [InputCase(key, tuple(sorted(found))) for key, found in parts.items()]


def _longest_first(suffixes: tuple[str, ...]) -> list[str]:
    return sorted(suffixes, key=len, reverse=True)


def _is_dicom(folder: Path) -> bool:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return bool(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))


def _require(path: Path) -> None:
    if path.exists():
        return
    close = close_names(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
    hint = f"; close names: {', '.join(map(repr, close))}" if close else ""
    raise InputError(f"--input: no file or folder {str(path)!r}{hint}")
