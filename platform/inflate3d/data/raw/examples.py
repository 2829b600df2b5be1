"""Tiny files for the examples that datasets write of their layouts: volumes with a box per label, series, and clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
SHAPE_DHW = (8, 12, 14)


def boxes(values: Sequence[int], *, shift: int = 0) -> np.ndarray:
    """Return a mask (8, 12, 14) uint8: columns of two voxels along W hold the values, in order, up to six of them."""
    mask = np.zeros(SHAPE_DHW, np.uint8)
    for place, value in enumerate(values[:6]):
        mask[2:6, 3 + shift : 9 + shift, 1 + 2 * place : 3 + 2 * place] = value
    return mask


def write_mask(file: Path, mask: np.ndarray) -> None:
    """Write a mask as NIfTI, its folders too."""
    from inflate3d.data.raw.readers import write_nifti

    file.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(file, mask, AFFINE)


def write_image(file: Path, mask: np.ndarray, *, seed: int = 0, gain: int = 40) -> None:
    """Write a CT-like volume as NIfTI: noise about 0, and `gain` times the mask."""
    noise = np.random.default_rng(seed).normal(0, 5, mask.shape)
    write_mask(file, (noise + gain * mask.astype(float)).astype(np.int16))


def write_dicom_series(
    folder: Path,
    hounsfield_DHW: np.ndarray,
    *,
    series_uid: str,
    patient: str,
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> None:
    """Write an axial CT of 1 x 1 x 2 mm as 0.dcm and so on. origin_mm: (x, y, z) of its first voxel, LPS."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    x, y, z0 = origin_mm
    for z, plane in enumerate(hounsfield_DHW):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = UID(f"{series_uid}.{z + 1}")
        slice_ = FileDataset(str(folder / f"{z}.dcm"), {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.SeriesInstanceUID, slice_.Modality, slice_.PatientID = series_uid, "CT", patient
        slice_.ImagePositionPatient, slice_.ImageOrientationPatient = [x, y, z0 + 2 * z], [1, 0, 0, 0, 1, 0]
        slice_.PixelSpacing, slice_.SliceThickness, slice_.InstanceNumber = [1, 1], 2, z + 1
        slice_.RescaleSlope, slice_.RescaleIntercept, slice_.RescaleType = 1, -1024, "HU"
        slice_.Rows, slice_.Columns = plane.shape
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation, slice_.PixelRepresentation = 1, "MONOCHROME2", 0
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
        slice_.PixelData = (plane.astype(np.int32) + 1024).astype(np.uint16).tobytes()
        slice_.save_as(folder / f"{z}.dcm", enforce_file_format=True)


def clip(*, brightens: bool, frames: int = 8) -> bytes:
    """Return an MPEG-4 file of 32 x 48 pixels at 8 frames a second that grows brighter or darker."""
    from inflate3d.data.raw.videos import encode_video

    levels = np.linspace(20, 220, frames, dtype=np.uint8)[:: 1 if brightens else -1]
    return encode_video(np.broadcast_to(levels[:, None, None, None], (frames, 32, 48, 3)), fps=8)
