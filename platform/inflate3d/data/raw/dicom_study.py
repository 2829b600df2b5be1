"""DICOM series at or below a folder, such as PATIENT/STUDY/SERIES of an archive's export: where each one lies."""

from __future__ import annotations

import logging
import os
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from inflate3d.data.raw.dicom_series import class_name, dicom_files, holds_dicom, is_localizer
from inflate3d.data.raw.files import visible
from inflate3d.data.raw.keys import case_keys
from inflate3d.errors import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

_log = logging.getLogger("inflate3d")
_TAGS = ["SOPClassUID", "ImageType", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "ImagePositionPatient"]
_IMAGE, _LOCALIZER, _CAPTURE = "slices", "localizers", "captures of a screen, without a place"
_MOST_NAMED = 10


def series_below(root: Path) -> list[Path]:
    """Return what `read_volume` takes for each series, sorted: its folder, or FOLDER/UID where a folder holds several.

    Series of localizers alone, captures of a screen and what is no image (reports, structures, segmentations) are
    passed over and named in the log; localizers and captures count where there is nothing else. Hidden files are left
    out. InputError for a series whose files lie in several folders.
    """
    groups = _groups_below(root)
    series = [place for place, kinds in groups.items() if _IMAGE in kinds]
    series = series or [place for place, kinds in groups.items() if {_LOCALIZER, _CAPTURE} & set(kinds)]
    _say_passed_over({place: kinds for place, kinds in groups.items() if place not in series}, root)
    uids = defaultdict(list)
    for folder, uid in series:
        uids[folder].append(uid)
    return sorted(path for folder, held in uids.items() for path in _paths(folder, held))


def series_keys(paths: list[Path], root: Path) -> list[str]:
    """Return what the cases are called: the path below root joined by '-', whatever lies beside; root by its name."""
    if paths == [root]:
        return [root.resolve().name]
    names = ["-".join(path.relative_to(root).parts) or root.resolve().name for path in paths]
    return case_keys(names, where=str(root))


def holds_dicom_below(root: Path) -> bool:
    """Whether a folder, or one below it, holds a DICOM file."""
    return any(holds_dicom(folder) for folder in _folders(root))


def patient_of(series: Path) -> str:
    """Return the PatientID of the first file of a series, as `series_below` names it; "" where it states none."""
    folder = series if series.is_dir() else series.parent
    headers = (_header(file) for file in dicom_files(folder))
    own = (h for h in headers if folder == series or str(h.get("SeriesInstanceUID", "")) == series.name)
    return next((str(header.get("PatientID", "")) for header in own), "")


def _folders(root: Path) -> list[Path]:
    return sorted({path.parent for path in visible(root, "**/*")})


def _groups_below(root: Path) -> dict[tuple[Path, str], Counter[str]]:
    """Return by folder and SeriesInstanceUID ("" for none) how many files of each kind there are."""
    groups: dict[tuple[Path, str], Counter[str]] = {}
    homes: dict[tuple[str, ...], Path] = {}
    for folder in _folders(root):
        held: dict[str, Counter[str]] = defaultdict(Counter)
        for header in map(_header, files := dicom_files(folder)):
            whose = tuple(str(header.get(tag, "")) for tag in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID"))
            held[whose[-1]][_kind(header)] += 1
            if whose[-1] and (other := homes.setdefault(whose, folder)) != folder:
                raise InputError(
                    f"{root}: files of the DICOM series {whose[-1]} lie in {other} and in {folder}; "
                    "put them into one folder, or leave a copy out"
                )
        broken = [p for p in folder.glob("*.[dD][cC][mM]") if p not in files and not p.name.startswith(".")]
        if broken and not any(_IMAGE in kinds for kinds in held.values()):
            held[""][_IMAGE] += len(broken)  # reading the folder names them
        groups |= {(folder, uid): kinds for uid, kinds in held.items()}
    return groups


def _header(file: Path) -> Dataset:
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reading the series tells them
        return pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=_TAGS)


def _kind(header: Dataset) -> str:
    """Return one of the kinds of images, or the class of what is none. What is cut short counts as slices."""
    name = class_name(header)
    if ("Storage" in name and "Image Storage" not in name) or "Directory" in name:
        return name
    if is_localizer(header):
        return _LOCALIZER
    return _CAPTURE if "Secondary Capture" in name and not header.get("ImagePositionPatient") else _IMAGE


def _paths(folder: Path, uids: list[str]) -> list[Path]:
    """Return a path a series; files without a UID are the folder's, whose reading refuses them by name."""
    return [folder / uid for uid in uids] if len(uids) > 1 else [folder]


def _say_passed_over(groups: dict[tuple[Path, str], Counter[str]], root: Path) -> None:
    told = []
    for (folder, _), kinds in sorted(groups.items()):
        name = os.path.relpath(folder, root)
        told.append(f"{name}: {', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}")
    if told:
        more = f"; and {len(told) - _MOST_NAMED} more" if len(told) > _MOST_NAMED else ""
        _log.warning("%s: passed over: %s%s", root, "; ".join(told[:_MOST_NAMED]), more)
