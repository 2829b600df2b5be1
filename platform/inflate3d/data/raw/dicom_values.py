"""The stored numbers of DICOM frames, whatever their transfer syntax, through the table of values that a file has."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inflate3d.data.raw.dicom_frames import Frame
from inflate3d.errors import InputError

if TYPE_CHECKING:
    from pydicom import Dataset


def stored_numbers(frames: Sequence[Frame]) -> np.ndarray:
    """Return (X, Y, Z, 1): the numbers of the frames in their order, before rescale, in one type that holds all.

    Where a file has a Modality LUT (PS3.3 C.11.1.1), numbers are its entries. InputError names a file whose pixels are
    missing, cut short or in a syntax without a decoder, or whose table is damaged.
    """
    array: np.ndarray | None = None
    opened: tuple[Path | None, np.ndarray | None] = (None, None)
    for z, frame in enumerate(frames):
        if opened[0] != frame.file:
            opened = (frame.file, _pixels_of(frame.file))
        assert opened[1] is not None
        pixels = opened[1][frame.index]
        if pixels.shape != frame.shape:
            raise InputError(f"{frame.file}: holds {pixels.shape} pixels, its header states {frame.shape}")
        if array is None:
            array = np.empty((len(frames), *frame.shape), pixels.dtype)
        if pixels.dtype != array.dtype:
            array = array.astype(np.result_type(array, pixels))
        array[z] = pixels
    assert array is not None
    return array.transpose(2, 1, 0)[..., None]


def _pixels_of(file: Path) -> np.ndarray:
    """Return (frames, rows, columns) as stored, the bits above BitsStored (overlays) left out."""
    import pydicom
    from pydicom.uid import ImplicitVRLittleEndian

    header = pydicom.dcmread(file, force=True)
    syntax = header.file_meta.setdefault("TransferSyntaxUID", ImplicitVRLittleEndian).value
    try:
        if syntax.is_compressed and not _has_decoder(syntax):
            pixels = _decoded_by_itk(header)
        else:
            pixels = pydicom.pixels.pixel_array(header, raw=True, correct_unused_bits=False)
    except Exception as fault:  # decoders raise a dozen kinds
        reason = (str(fault).strip() or type(fault).__name__).splitlines()[0][:200]
        raise InputError(
            f"{file}: its pixels ({syntax.name}) cannot be read: {reason}. It is cut short, damaged, or "
            "compressed in a way that no decoder here knows"
        ) from fault
    pixels = pixels.reshape(-1, *pixels.shape[-2:])
    pixels = _without_overlay(pixels, header)
    return _through_table(pixels, header) if header.get("ModalityLUTSequence") else pixels


def _has_decoder(syntax: str) -> bool:
    from pydicom.pixels import get_decoder

    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _decoded_by_itk(header: Dataset) -> np.ndarray:
    """Return the numbers as ITK's decoders (JPEG, JPEG-LS, JPEG 2000) give them, of a copy without rescale."""
    import SimpleITK as sitk

    from inflate3d.data.raw.nrrd_mha import heard

    header = copy(header)
    for name in ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "PixelPaddingValue"):
        if name in header:
            del header[name]
    header.PhotometricInterpretation = "MONOCHROME2"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame.dcm"
        header.save_as(path)
        with heard() as warnings:
            image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
        if warnings:
            raise ValueError(warnings[0])
        return sitk.GetArrayFromImage(image)


def _without_overlay(pixels: np.ndarray, header: Dataset) -> np.ndarray:
    """Return the numbers of the bits stored, with their sign (PS3.5 8.1.1)."""
    if pixels.dtype.kind not in "iu":
        return pixels
    allocated, stored = 8 * pixels.dtype.itemsize, int(header.get("BitsStored") or 8 * pixels.dtype.itemsize)
    high = int(header.get("HighBit", stored - 1))
    if not 0 < stored <= high + 1 <= allocated:
        raise InputError(f"{header.filename}: states {stored} bits up to bit {high} of {allocated}; fix the header")
    if stored == allocated:
        return pixels
    left = np.left_shift(pixels, allocated - 1 - high)
    return np.right_shift(left, allocated - stored)


def _through_table(pixels: np.ndarray, header: Dataset) -> np.ndarray:
    """Return the entries of a file's Modality LUT, uint8 or uint16; its first and last stand for what lies beyond."""
    from pydicom.pixels import apply_modality_lut

    try:
        return apply_modality_lut(pixels.astype(np.int32), header)  # in the pixels' own type differences may wrap
    except Exception as fault:
        raise InputError(
            f"{header.filename}: its table of values (0028,3000) cannot be applied: {fault}; mend the file"
        ) from fault
