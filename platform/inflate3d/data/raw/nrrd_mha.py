"""NRRD and MetaImage files (.mha, .mhd): ITK reads the voxels, and what it leaves out of their headers is read here."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inflate3d.data.raw.nifti import MOST_DEFLATE, refuse_absurd, with_channels
from inflate3d.data.raw.noticed import Noticed
from inflate3d.data.raw.stored import MILLIMETRES, Stored, in_millimetres
from inflate3d.errors import InputError

if TYPE_CHECKING:
    import SimpleITK

ITK = (".nrrd", ".mha", ".mhd")
# ITK's millimetres are LPS: x grows to the left, y to posterior.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_ANATOMICAL = re.compile(r"(right|left|[rl]).*(anterior|posterior|[ap]).*(superior|[si])", re.IGNORECASE)
_MOST_HEADER = 2**20
# AnatomicalOrientation names the side that an axis begins at: its row of the affine to RAS, and the sign there.
_BEGINS = {"R": (0, -1), "L": (0, 1), "A": (1, -1), "P": (1, 1), "I": (2, 1), "S": (2, -1)}


def load_itk(path: Path) -> Stored:
    """Return the numbers of an NRRD or MetaImage file and where its voxels lie.

    Units are those of `space units` or `units` (NRRD) and `DistanceUnits` (MHA), which ITK ignores; values are those of
    `ElementToIntensityFunctionSlope` and `...Offset` (MHA). A place that the header leaves open is noticed. InputError
    for units that are no length, for an axis of space without a direction, for an AnatomicalOrientation (MHA) that is
    all that is said of the axes and which ITK ignores, and for data cut short.
    """
    import SimpleITK as sitk

    fields, start = _fields(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with heard() as warnings:
        reader.ReadImageInformation()
        itemsize = _itemsize(reader)
        size = math.prod(reader.GetSize()) * itemsize
        data, start = _data_place(path, fields, start)
        refuse_absurd(size, data.stat().st_size * MOST_DEFLATE, reader.GetSize(), path)
        _check_data(data, fields, start, size)
        array, affine = _from_itk(reader.Execute())
    unit, factor = _unit(fields, path)
    affine, told = in_millimetres(affine, unit, factor)
    return Stored(
        with_channels(array, path),
        affine,
        _number(fields, "elementtointensityfunctionslope", 1.0),
        _number(fields, "elementtointensityfunctionoffset", 0.0),
        (
            *told,
            *_doubts(fields, path),
            *_named_axes(fields, affine, path),
            *(Noticed("warning", text) for text in warnings),
        ),
    )


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collect what ITK warns of meanwhile, each text once, in place of printing it."""
    import SimpleITK as sitk

    texts: dict[str, None] = {}

    class Listener(sitk.LoggerBase):
        def DisplayWarningText(self, text: str) -> None:
            texts[" ".join(text.split())[-300:]] = None

        DisplayText = DisplayErrorText = DisplayGenericOutputText = DisplayWarningText

    listener = Listener()
    found: list[str] = []
    before = listener.SetAsGlobalITKLogger()
    try:
        yield found
    finally:
        before.SetAsGlobalITKLogger()
        found.extend(texts)


def _from_itk(image: SimpleITK.Image) -> tuple[np.ndarray, np.ndarray]:
    """Return (X, Y, Z[, T][, C]) and the affine to RAS+ mm."""
    import SimpleITK as sitk

    array = sitk.GetArrayFromImage(image)
    axes = image.GetDimension()
    array = array.transpose(*reversed(range(axes)), *range(axes, array.ndim))
    direction = np.array(image.GetDirection()).reshape(axes, axes)
    affine = np.eye(4)
    if axes >= 3:
        affine[:3, :3] = direction[:3, :3] * image.GetSpacing()[:3]
        affine[:3, 3] = image.GetOrigin()[:3]
    return array, LPS_TO_RAS @ affine


def _itemsize(reader: SimpleITK.ImageFileReader) -> int:
    import SimpleITK as sitk

    voxel = sitk.Image([1, 1, 1], reader.GetPixelID(), reader.GetNumberOfComponents())
    return int(sitk.GetArrayViewFromImage(voxel).nbytes)


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the header's fields, names in lower case, and where the data begin in this file."""
    with path.open("rb") as file:
        raw = file.read(_MOST_HEADER)
    if path.name.lower().endswith(".nrrd"):
        end = re.search(rb"\r?\n\r?\n", raw)
        start = end.end() if end else len(raw)
    else:
        end = re.search(rb"(?im)^ElementDataFile\s*=.*?\n", raw)
        start = end.end() if end else len(raw)
    lines = raw[:start].decode("utf-8", "replace").splitlines()
    pairs = (re.split(r":=?|=", line, maxsplit=1) for line in lines if not line.startswith("#"))
    return {p[0].strip().lower(): p[1].strip() for p in pairs if len(p) == 2}, start


def _data_place(path: Path, fields: dict[str, str], start: int) -> tuple[Path, int]:
    """Return the file that holds the voxels, and where they begin: a MetaImage may name a file beside it."""
    name = fields.get("elementdatafile", "LOCAL")
    if name.upper() == "LOCAL":
        return path, start
    if name.upper().startswith("LIST") or "%" in name:
        raise InputError(f"{path}: names several files of voxels ({name}); convert it to one .nii.gz or .mha")
    data = path.parent / name
    if not data.is_file():
        raise InputError(f"{path}: its voxels are in {name}, which is not beside it; complete the pair")
    return data, max(0, int(fields.get("headersize", 0)))


def _check_data(path: Path, fields: dict[str, str], start: int, size: int) -> None:
    """Check that the data in this file are whole, as far as ITK does not: it skips the checksum of gzip."""
    if {"data file", "datafile"} & set(fields):
        return
    packed = fields.get("compresseddata", "false").lower() == "true"
    encoding = fields.get("encoding", "zlib" if packed else "raw").lower()
    held = path.stat().st_size - start
    if encoding == "raw" and "elementdatafile" in fields and held < size:
        raise InputError(f"{path}: holds {held} of the {size} bytes of voxels that its header states; it is truncated")
    if encoding not in ("gzip", "gz", "zlib"):
        return
    member = zlib.decompressobj(wbits=47)  # either header, with its checksum
    with path.open("rb") as file:
        file.seek(start)
        while not member.eof and (part := file.read(2**20)):
            while part and not member.eof:
                member.decompress(part, 2**22)
                part = member.unconsumed_tail
    if not member.eof:
        raise InputError(f"{path}: the compressed data end early; it is truncated")


def _unit(fields: dict[str, str], path: Path) -> tuple[str, float]:
    """Return the unit of length and its millimetres. InputError if axes of space differ, or it is no length."""
    said = fields.get("space units") or fields.get("units") or fields.get("distanceunits") or ""
    names = re.findall(r'"([^"]*)"', said) if '"' in said else [said.strip()]
    units = {name.strip() for name in names} - {"", "?", "s", "ms", "sec", "seconds"}
    known = [MILLIMETRES.get(unit.lower()) for unit in units]
    if len(set(known)) > 1 or None in known:
        raise InputError(f"{path}: its units are {sorted(units)}; allowed: one unit of length, such as mm or microns")
    return (units.pop(), float(known[0] or 1.0)) if units else ("unstated", 1.0)


def _number(fields: dict[str, str], name: str, default: float) -> float:
    value = float(fields.get(name) or default)
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}")
    return value


def _doubts(fields: dict[str, str], path: Path) -> tuple[Noticed, ...]:
    """Say what an NRRD header leaves open. InputError for an axis of space without a direction."""
    if "elementtype" in fields:
        return ()
    space = fields.get("space", "")
    kinds = fields.get("kinds", "").lower().split()
    vectors = re.findall(r"none|\([^)]*\)", fields.get("space directions", ""), re.IGNORECASE)
    if vectors and len(vectors) - sum(v.lower() == "none" for v in vectors) < 3:
        raise InputError(f"{path}: its space directions are {' '.join(vectors)}; three axes need a direction each")
    if any(kind in ("rgb-color", "rgba-color", "hsv-color", "complex") for kind in kinds):
        raise InputError(f"{path}: its axes are {', '.join(kinds)}; allowed: voxels of one number, or channels")
    if _ANATOMICAL.match(space) or re.fullmatch("[RLAPSI]{3}T?", space, re.IGNORECASE):
        return ()
    if not vectors:
        return (Noticed("place unstated", "the header states no space directions; axes are taken as LPS"),)
    named = f"the space {space!r}" if space else "a space without a name"
    return (Noticed("place unstated", f"{named} says not how the patient lies; LPS is taken"),)


def _named_axes(fields: dict[str, str], affine: np.ndarray, path: Path) -> tuple[Noticed, ...]:
    """Hold AnatomicalOrientation (MHA) against the directions of the axes, which it names once more.

    Where a matrix gives them it counts, as for ITK, and a name more than 60 degrees off is noticed. InputError if there
    is none.
    """
    letters = fields.get("anatomicalorientation", "").upper()
    if not re.fullmatch(f"[{''.join(_BEGINS)}]{{3}}", letters):
        return ()  # "???" says nothing
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    named = [_BEGINS[letter] for letter in letters]
    if all(sign * axes[row, i] > 0.5 for i, (row, sign) in enumerate(named)):
        return ()
    if {"transformmatrix", "rotation", "orientation"} & set(fields):
        text = f"AnatomicalOrientation is {letters}, which its TransformMatrix contradicts; the matrix is taken"
        return (Noticed("orientation contradicted", text),)
    raise InputError(
        f"{path}: AnatomicalOrientation is {letters} and no TransformMatrix says how its axes lie; RAI is what readers "
        "take then. Write the file again with its TransformMatrix"
    )
