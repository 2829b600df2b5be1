"""One frame of a DICOM file: where it lies, and what turns its stored numbers into values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inflate3d.errors import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

# Of scanned film (0018,2010) where there is no PixelSpacing.
_SPACINGS = ("PixelSpacing", "NominalScannedPixelSpacing")
# Tell frames at one place apart; the first that differs is named.
_TRAITS = (
    *("TemporalPositionIdentifier", "TemporalPositionIndex", "TriggerTime", "EchoTime", "EchoNumbers"),
    *("EffectiveEchoTime", "DiffusionBValue", "InversionTime", "FrameReferenceTime", "AcquisitionNumber"),
    *("AcquisitionTime", "ContentTime", "ImageType", "InstanceNumber"),
)


@dataclass(frozen=True, eq=False)
class Frame:
    """index: of the frame in its file. Vectors are in LPS millimetres (PS3.3 C.7.6.2.1.1).

    position_mm: centre of the first pixel (0020,0032). row, column: unit vectors along growing column and row index
    (0020,0037). spacing_mm: between rows, between columns (0028,0030). thickness_mm: (0018,0050), None if not stated.
    slope, intercept: (0028,1053), (0028,1052). unit: (0028,1054), (0054,1001) or that of a table (0028,3004), "" if not
    stated.
    """

    file: Path
    index: int
    series: str
    shape: tuple[int, int]
    position_mm: np.ndarray
    row: np.ndarray
    column: np.ndarray
    spacing_mm: tuple[float, float]
    thickness_mm: float | None
    slope: float
    intercept: float
    unit: str
    is_inverted: bool
    place: str
    traits: dict[str, str]

    def __str__(self) -> str:
        return f"{self.file.name} frame {self.index + 1}" if self.index else self.file.name


def frames_of(header: Dataset, file: Path) -> list[Frame]:
    """Return the frames of an image file in their order. InputError for what has no place, no grey values, or no frame.

    Places are those of the functional groups (enhanced files, PS3.3 C.7.6.16), of the detector (nuclear medicine,
    PS3.3 C.8.4.11), or of the plane.
    """
    _refuse_other_kinds(header, file)
    count = int(header.get("NumberOfFrames") or 1)
    if count < 1:
        raise InputError(f"{file}: states {count} frames; it is damaged")
    if "PerFrameFunctionalGroupsSequence" in header:
        groups = header.PerFrameFunctionalGroupsSequence
        if len(groups) != count:
            raise InputError(f"{file}: states {count} frames but describes {len(groups)}; it is damaged")
        shared = header.get("SharedFunctionalGroupsSequence") or [None]
        return [_frame(file, i, (*_groups(groups[i]), *_groups(shared[0]), header)) for i in range(count)]
    if "DetectorInformationSequence" in header and count > 1:
        return list(_detector_frames(header, file, count))
    if count > 1:
        raise InputError(
            f"{file}: holds {count} frames without a place each (0020,9113), such as frames in time; "
            "export slices, or convert it by dcm2niix"
        )
    return [_frame(file, 0, (header,))]


def _refuse_other_kinds(header: Dataset, file: Path) -> None:
    photometric, samples = str(header.get("PhotometricInterpretation", "")), int(header.get("SamplesPerPixel") or 1)
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2", ""):
        raise InputError(
            f"{file}: is in colour ({photometric}, {samples} samples a pixel); allowed: MONOCHROME1 and MONOCHROME2. "
            "Leave colour captures out of the series"
        )
    if header.get("ModalityLUTSequence") and "RescaleSlope" in header:
        raise InputError(
            f"{file}: states a table of values (0028,3000) and a rescale slope (0028,1053) too, where one is allowed "
            "(PS3.3 C.11.1); delete the wrong one"
        )
    if "MOSAIC" in [str(word).upper() for word in _many(header.get("ImageType"))]:
        raise InputError(f"{file}: is a mosaic, many slices in one picture; convert the series by dcm2niix")


def _detector_frames(header: Dataset, file: Path, count: int) -> Iterator[Frame]:
    """Yield the slices of a reconstructed tomogram: stacked from the detector's position along the normal.

    The signed SpacingBetweenSlices (0018,0088) says which way, else SliceThickness.
    """
    detector = header.DetectorInformationSequence[0]
    slices = header.get("NumberOfSlices")
    is_tomogram = any(str(word).upper() in ("RECON TOMO", "TOMO") for word in _many(header.get("ImageType")))
    if not is_tomogram or (slices is not None and int(slices) != count):
        raise InputError(
            f"{file}: holds {count} frames of {slices or 'no'} slices, so they are not one volume (views, gates or "
            "times); export the reconstructed slices of one"
        )
    first = _frame(file, 0, (detector, header))
    step = _number(header, "SpacingBetweenSlices") or first.thickness_mm
    if not step:
        raise InputError(f"{file}: states neither SpacingBetweenSlices nor SliceThickness; slices have no distance")
    normal = np.cross(first.row, first.column)
    for i in range(count):
        moved = {"position_mm": first.position_mm + i * step * normal, "index": i}
        yield Frame(**{**first.__dict__, **moved})


def _frame(file: Path, index: int, sources: Sequence[Dataset]) -> Frame:
    """Return one frame; of several sources the first that states an attribute counts."""

    def find(name: str) -> Any:
        return next((s[name].value for s in sources if name in s and s[name].value not in (None, "")), None)

    position, orientation = _numbers(find("ImagePositionPatient"), 3), _numbers(find("ImageOrientationPatient"), 6)
    if position is None or orientation is None:
        raise InputError(
            f"{file}: states no ImagePositionPatient or ImageOrientationPatient, so its pixels have no place; "
            "leave it out of the series, or convert the series to NIfTI with its place"
        )
    spacing = next((s for name in _SPACINGS if (s := _numbers(find(name), 2)) is not None), None)
    if spacing is None or min(spacing) <= 0:
        raise InputError(f"{file}: PixelSpacing (0028,0030) is {find('PixelSpacing')}; expected two sizes in mm")
    row, column = _directions(orientation, file)
    thickness = find("SliceThickness")
    slope, intercept, table = find("RescaleSlope"), find("RescaleIntercept"), find("ModalityLUTSequence")
    scale = (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))
    if not all(map(math.isfinite, scale)) or scale[0] == 0:
        raise InputError(f"{file}: rescale slope {slope} and intercept {intercept} give no values; fix the header")
    return Frame(
        file=file,
        index=index,
        series=str(find("SeriesInstanceUID") or ""),
        shape=(int(find("Rows")), int(find("Columns"))),
        position_mm=position,
        row=row,
        column=column,
        spacing_mm=(float(spacing[0]), float(spacing[1])),
        thickness_mm=None if thickness is None else abs(float(thickness)) or None,
        slope=scale[0],
        intercept=scale[1],
        unit=str(find("RescaleType") or find("Units") or (table[0].get("ModalityLUTType") if table else None) or ""),
        is_inverted=find("PhotometricInterpretation") == "MONOCHROME1",
        place=str(find("FrameOfReferenceUID") or ""),
        traits={name: str(value) for name in _TRAITS if (value := find(name)) is not None},
    )


def _directions(orientation: np.ndarray, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit vectors along a row and a column. InputError if they are not perpendicular units."""
    row, column = orientation[:3], orientation[3:]
    sizes = np.linalg.norm(row), np.linalg.norm(column)
    if not np.allclose(sizes, 1, atol=0.01) or abs(row @ column) > 1e-3:
        raise InputError(
            f"{file}: ImageOrientationPatient is {orientation.tolist()}; expected two perpendicular vectors of length 1"
        )
    return row / sizes[0], column / sizes[1]


def _groups(item: Dataset | None) -> list[Dataset]:
    """Return the functional groups of a frame, or those of all frames."""
    if item is None:
        return []
    return [element.value[0] for element in item if element.VR == "SQ" and element.value]


def _number(header: Dataset, name: str) -> float | None:
    value = header.get(name)
    return None if value in (None, "") else float(value)


def _numbers(value: Any, count: int) -> np.ndarray | None:
    numbers = [float(v) for v in _many(value)]
    return np.array(numbers) if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _many(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
