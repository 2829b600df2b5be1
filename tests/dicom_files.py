"""DICOM files for tests: slices of a series and multi-frame files as a scanner may set them, and what is read there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from inflate3d.data.raw.readers import Volume, read_volume
from inflate3d.errors import InputError
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
NUCLEAR = "1.2.840.10008.5.1.4.1.1.20"
PET = "1.2.840.10008.5.1.4.1.1.128"


def dataset(array: np.ndarray, number: int, **more: Any) -> Dataset:
    """A file of one frame (rows, columns) or several (frames, rows, columns), without a place."""
    d = Dataset()
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = more.pop("syntax", ExplicitVRLittleEndian)
    d.SOPClassUID = more.pop("sop_class", CT)
    d.SOPInstanceUID = f"1.2.826.0.1.3680043.2.{number + 1}"
    d.file_meta.MediaStorageSOPClassUID, d.file_meta.MediaStorageSOPInstanceUID = d.SOPClassUID, d.SOPInstanceUID
    d.StudyInstanceUID, d.SeriesInstanceUID, d.Modality, d.InstanceNumber = "1.2.3", "1.2.3.4", "CT", number + 1
    d.Rows, d.Columns = array.shape[-2:]
    d.BitsAllocated = d.BitsStored = 8 * array.dtype.itemsize
    d.HighBit, d.PixelRepresentation = d.BitsStored - 1, int(array.dtype.kind == "i")
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.PixelData = array.tobytes()
    for name, value in more.items():
        if value is None:
            del d[name]
        else:
            setattr(d, name, value)
    return d


def write_slice(folder: Path, number: int, array: np.ndarray, position: Any = (0, 0, 0), **more: Any) -> Path:
    """Write IM0000.dcm and so on: 1 mm pixels, axial, 5 mm thick, unless `more` says otherwise (None: left out)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / more.pop("name", f"IM{number:04d}.dcm")
    plain = {
        "ImagePositionPatient": [float(v) for v in position],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [1, 1],
        "SliceThickness": 5,
    }
    chosen = {**plain, **more}
    left_out = {name for name in plain if chosen[name] is None}
    d = dataset(array, number, **{name: value for name, value in chosen.items() if name not in left_out})
    d.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, count: int = 6, *, step: Any = (0, 0, 5), **more: Any) -> Path:
    """Write slices of 6x5 that hold 100 * slice + 5 * row + column, each `step` further."""
    for i in range(count):
        array = (100 * i + np.arange(30).reshape(6, 5)).astype(np.int16)
        write_slice(folder, i, array, np.array(step, float) * i, **more)
    return folder


def item(**values: Any) -> Dataset:
    """An item of a sequence."""
    d = Dataset()
    for name, value in values.items():
        setattr(d, name, value)
    return d


def write_enhanced(path: Path, array: np.ndarray, positions: Any, orientation: Any = (1, 0, 0, 0, 1, 0)) -> Path:
    """Write an enhanced file whose frames (frames, rows, columns) lie at `positions`; slope 2, intercept of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.75], SliceThickness=3)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=list(orientation))],
    )
    frames = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[float(v) for v in position])],
            PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=i, RescaleType="US")],
        )
        for i, position in enumerate(positions)
    ]
    sequences = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": frames}
    d = dataset(array, 0, sop_class=ENHANCED_MR, NumberOfFrames=len(array), Modality="MR", **sequences)
    d.save_as(path, enforce_file_format=True)
    return path


def change(path: Path, **values: Any) -> None:
    """Set attributes of a file that is there."""
    d = pydicom.dcmread(path)
    for name, value in values.items():
        setattr(d, name, value)
    d.save_as(path)


def at_mm(volume: Volume, left: float, posterior: float, superior: float) -> float:
    """The value at a place in DICOM's own LPS millimetres, which must be a voxel's centre."""
    place = np.linalg.solve(np.array(volume.affine), [-left, -posterior, superior, 1.0])[:3]
    np.testing.assert_allclose(place, np.rint(place), atol=1e-4)
    w, h, d = np.rint(place).astype(int)
    assert min(w, h, d) >= 0
    return float(volume.array[0, d, h, w])


def refused(folder: Path) -> str:
    """What a folder that is refused is told: one line that begins with its path."""
    with pytest.raises(InputError) as caught:
        read_volume(folder)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def kinds(volume: Volume) -> set[str]:
    """What kinds of facts were noticed."""
    return {fact.kind for fact in volume.noticed}
