"""One DICOM series, in a folder of its own or of several: which files are its slices, and which are not."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inflate3d.data.raw.dicom_frames import Frame, frames_of
from inflate3d.data.raw.dicom_grid import grid_of
from inflate3d.data.raw.dicom_values import stored_numbers
from inflate3d.data.raw.noticed import Noticed
from inflate3d.data.raw.stored import Stored
from inflate3d.errors import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_LITTER = {"thumbs.db", "desktop.ini", "dicomdir", "__macosx", "lockfile", "version", "index", "readme", "license"}


@dataclass
class _Found:
    """What a folder holds. wrong: files that should be slices but are empty, absent or no DICOM, with the reason."""

    headers: dict[Path, Dataset] = field(default_factory=dict)
    wrong: dict[Path, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def holds_dicom(folder: Path) -> bool:
    """Whether a file of the folder (not of folders below) begins as DICOM does, or is named .dcm."""
    return any(
        p.suffix.lower() == ".dcm" or (p.is_file() and _begins_as_dicom(p))
        for p in folder.iterdir()
        if not p.is_dir() and not p.name.startswith(".")
    )


def is_series(path: Path) -> bool:
    """Whether a path is a folder, or FOLDER/UID: a series by its SeriesInstanceUID among those of a folder."""
    if path.is_dir():
        return True
    is_named = _UID.fullmatch(path.name) is not None and not path.exists() and not path.is_symlink()
    return is_named and path.parent.is_dir() and holds_dicom(path.parent)


def dicom_files(folder: Path) -> list[Path]:
    """Return the files of a folder that begin as DICOM does, sorted, without hidden ones and litter of disks."""
    files = (p for p in sorted(folder.iterdir()) if p.is_file() and not _is_litter(p) and p.stat().st_size)
    return [file for file in files if _begins_as_dicom(file)]


def load_dicom(path: Path) -> Stored:
    """Return the numbers of the one series in a folder, or of FOLDER/UID, and where its voxels lie.

    Reports, structures, segmentations, localizers and what disks leave behind are passed over and noticed. Warnings of
    pydicom are noticed. InputError for no or several series, for a slice that is empty, absent, cut short or no DICOM,
    and for frames that are not one regular grid (`grid_of`).
    """
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        folder, uid = (path, None) if path.is_dir() else (path.parent, path.name)
        frames, passed_over = _frames_of_one_series(_survey(folder), folder, uid)
        frames, affine, tilted = grid_of(frames, path)
        numbers = stored_numbers(frames)
    slope, intercept = (np.array([getattr(f, n) for f in frames]) for n in ("slope", "intercept"))
    noticed = (*tilted, *_noticed(frames), *passed_over, *_warned(heard))
    if len(set(slope)) == len(set(intercept)) == 1:
        return Stored(numbers, affine, float(slope[0]), float(intercept[0]), noticed)
    return Stored(numbers, affine, slope, intercept, noticed)


def slices_of(path: Path) -> list[tuple[Path, int]]:
    """Return the file of each slice along z of what `load_dicom` reads, and the frame in it; InputError as there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reading the series tells them
        folder, uid = (path, None) if path.is_dir() else (path.parent, path.name)
        frames, _ = _frames_of_one_series(_survey(folder), folder, uid)
        return [(frame.file, frame.index) for frame in grid_of(frames, path)[0]]


def _survey(folder: Path) -> _Found:
    """Read the header of every DICOM file, and sort the others into those that are wrong and those that are not."""
    import pydicom

    found = _Found()
    for file in sorted(folder.iterdir()):
        if file.is_dir():
            continue
        if _is_litter(file):
            found.others.append(file.name)
        elif not file.exists():
            found.wrong[file] = "a link to a file that is not there"
        elif file.stat().st_size == 0:
            found.wrong[file] = "empty"
        elif not _begins_as_dicom(file):
            found.wrong[file] = "no DICOM file"
        else:
            found.headers[file] = pydicom.dcmread(file, force=True, defer_size=4096)
    return found


def _is_litter(file: Path) -> bool:
    return file.name.startswith(".") or file.stem.lower() in _LITTER


def _begins_as_dicom(file: Path) -> bool:
    """Whether a file has the mark of PS3.10 7.1, or begins with an element of group 2 or 8, as older files do."""
    with file.open("rb") as opened:
        head = opened.read(132)
    return head[128:] == b"DICM" or head[:2] in (b"\x02\0", b"\x08\0")


def _frames_of_one_series(found: _Found, folder: Path, uid: str | None) -> tuple[list[Frame], tuple[Noticed, ...]]:
    """Return the frames of the only series, or of that with this UID, and what was passed over."""
    images = {file: header for file, header in found.headers.items() if _is_image(header, file)}
    if uid is not None:
        found.headers = {file: h for file, h in found.headers.items() if str(h.get("SeriesInstanceUID", "")) == uid}
        images = {file: header for file, header in images.items() if file in found.headers}
    localizers = {file for file, header in images.items() if is_localizer(header)}
    if len(localizers) < len(images):
        images = {file: header for file, header in images.items() if file not in localizers}
    suffixes = {_suffix(file) for file in images} or {_suffix(file) for file in found.wrong}
    if wrong := {file: reason for file, reason in found.wrong.items() if _suffix(file) in suffixes | {".dcm"}}:
        named = "; ".join(f"{file.name} is {reason}" for file, reason in list(wrong.items())[:5])
        raise InputError(f"{folder}: {len(wrong)} of its slices cannot be read: {named}. Complete the series")
    _check_one_series(images, found, folder)
    kinds = Counter(class_name(h) for f, h in found.headers.items() if f not in images)
    others = [*found.others, *(file.name for file in found.wrong)]
    told = [Noticed("passed over", f"{n} of {kind}") for kind, n in kinds.items()]
    if others:
        named = ", ".join(others[:5])
        told.append(Noticed("passed over", f"{len(others)} that are no DICOM files: {named}"))
    return [frame for file, header in images.items() for frame in frames_of(header, file)], tuple(told)


def _check_one_series(images: dict[Path, Dataset], found: _Found, folder: Path) -> None:
    series = Counter(str(header.get("SeriesInstanceUID", "")) for header in images.values())
    if len(series) == 1:
        return
    if not series:
        held = ", ".join(sorted({class_name(h) for h in found.headers.values()})) or "no DICOM file"
        below = [p.name for p in sorted(folder.iterdir()) if p.is_dir()]
        hint = f"; folders below are not searched: {', '.join(below[:5])}" if below else ""
        raise InputError(f"{folder}: holds 0 DICOM series ({held}); give a folder that holds exactly one{hint}")
    listed = []
    for uid, count in series.most_common(5):
        one = next(h for h in images.values() if str(h.get("SeriesInstanceUID", "")) == uid)
        about = " ".join(str(v) for n in ("Modality", "SeriesNumber", "SeriesDescription") if (v := one.get(n)))
        listed.append(f"{about or uid} ({count} files)")
    raise InputError(
        f"{folder}: holds {len(series)} DICOM series: {'; '.join(listed)}; give a folder that holds exactly one"
    )


def _is_image(header: Dataset, file: Path) -> bool:
    """Whether a file is of an image class. InputError if it is but lacks what an image has: it is cut short."""
    has_pixels = "Rows" in header and any(e.group == 0x7FE0 for e in header.keys())  # noqa: SIM118
    name = class_name(header)
    if "Image Storage" not in name and not (has_pixels and "Storage" not in name):
        if "Storage" not in name and "Directory" not in name:
            raise InputError(f"{file}: is a DICOM file of no known class ({name}) and without pixels; is it cut short?")
        return False
    if not has_pixels:
        raise InputError(f"{file}: is of {name} but holds no pixels; it is cut short. Complete the series")
    return True


def is_localizer(header: Dataset) -> bool:
    words = header.get("ImageType") or []
    return "LOCALIZER" in [str(word).upper() for word in ([words] if isinstance(words, str) else words)]


def class_name(header: Dataset) -> str:
    """Return the name of the SOP class (PS3.6 A), such as "CT Image Storage"."""
    uid = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "no class"
    return str(getattr(uid, "name", uid))


def _suffix(file: Path) -> str:
    """Return the ending of a name; "" for none, and for the last number of a UID or of IM.0001."""
    suffix = file.suffix.lower()
    return "" if suffix[1:].isdigit() else suffix


def _noticed(frames: Sequence[Frame]) -> tuple[Noticed, ...]:
    told = []
    slopes = {(frame.slope, frame.intercept) for frame in frames}
    if len(slopes) > 1:
        low, high = min(s for s, _ in slopes), max(s for s, _ in slopes)
        told.append(Noticed("rescaled by slice", f"{len(slopes)} slopes and intercepts, slopes {low:g} to {high:g}"))
    if inverted := sum(frame.is_inverted for frame in frames):
        told.append(Noticed("inverted", f"{inverted} frames are MONOCHROME1 (low is bright); stored values are kept"))
    return tuple(told)


def _warned(heard: Sequence[warnings.WarningMessage]) -> tuple[Noticed, ...]:
    counts = Counter(" ".join(str(warning.message).split())[:300] for warning in heard)
    return tuple(Noticed("warning", f"{text} ({count} times)" if count > 1 else text) for text, count in counts.items())
