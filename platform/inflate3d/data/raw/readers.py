"""Reading volumes: every format gives (C, D, H, W) in a stated orientation and spacing.

D, H, W run along z, y, x. Millimetres are RAS+ (NIfTI's convention): x grows to the patient's right, y to anterior,
z to superior. A file in any other convention is turned; an oblique one keeps its small rotation in the affine.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inflate3d.data.raw.geometry import resample, spacing_of, turn
from inflate3d.data.raw.noticed import Noticed
from inflate3d.errors import InputError
from inflate3d.sample import Spacing

if TYPE_CHECKING:
    import SimpleITK

Affine = list[list[float]]
NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".mha")
SUFFIXES = (*NIFTI, *ITK, ".npy")
# Deflate cannot compress data further than this, so a header that states more is wrong.
_MOST_DEFLATE = 1032


@dataclass(frozen=True)
class Volume:
    """array: (C, D, H, W), uint8, int16 or float32. spacing_mm: (z, y, x). affine: (W, H, D) index -> RAS+ mm."""

    array: np.ndarray
    spacing_mm: Spacing
    affine: Affine
    noticed: tuple[Noticed, ...] = ()


def read_volume(
    path: str | Path, *, orientation: str | None = "RAS", spacing_mm: Spacing | None = None, is_mask: bool = False
) -> Volume:
    """Read .nii, .nii.gz, .nrrd, .mha, .npy or a folder that holds one DICOM series.

    `orientation` is where W, H and D grow to ("RAS"); None leaves the axes as stored. `spacing_mm` (z, y, x)
    resamples: linear for images, nearest for masks. Masks become uint8 after a check that they hold whole numbers from
    0 to 255. Whole values that fit stay or become uint8 or int16; others, and interpolated ones, are float32. A
    .npy is read as (D, H, W) or (C, D, H, W) without anatomy. InputError for a file that is missing, broken, not finite
    or 2-D.
    """
    path = Path(path)
    array_XYZC, affine = _load(path)
    if array_XYZC.size == 0:
        raise InputError(f"{path}: holds no voxels, shape {array_XYZC.shape[:3]} along (x, y, z)")
    array_XYZC = _whole_labels(array_XYZC, path) if is_mask else _compact(array_XYZC, path)
    anatomical = path.suffix != ".npy"
    if orientation is not None and anatomical:
        array_XYZC, affine = turn(array_XYZC, affine, orientation)
    array = np.ascontiguousarray(array_XYZC.transpose(3, 2, 1, 0))
    if spacing_mm is not None:
        if not anatomical:
            raise InputError(
                f"{path}: a .npy states no spacing, so it cannot be resampled to {spacing_mm} mm; use NIfTI"
            )
        array, affine = resample(array, affine, spacing_mm, nearest=is_mask, where=path)
    return Volume(array, spacing_of(affine), [[float(v) for v in row] for row in affine])


def check_pair(image: Volume | np.ndarray, mask: Volume | np.ndarray, classes: Sequence[str], *, where: str) -> None:
    """Check that a mask fits its image: same (D, H, W), labels within `classes`, same position where known.

    image (C, D, H, W); mask (D, H, W) or (1, D, H, W). Raises InputError that starts with `where`.
    """
    image_shape, mask_array = _array(image).shape[-3:], _array(mask)
    if mask_array.shape[-3:] != image_shape or (mask_array.ndim == 4 and len(mask_array) != 1):
        raise InputError(
            f"{where}: image is {image_shape} and mask {mask_array.shape} along (D, H, W); they must be equal"
        )
    top = int(mask_array.max())
    if top >= len(classes) or int(mask_array.min()) < 0:
        strange = [int(v) for v in np.unique(mask_array) if not 0 <= v < len(classes)]
        raise InputError(
            f"{where}: mask holds labels {strange[:8]}; allowed: 0 to {len(classes) - 1} ({', '.join(classes)[:200]})"
        )
    if isinstance(image, Volume) and isinstance(mask, Volume):
        corners = np.array([[w, h, d, 1] for w in (0, 1) for h in (0, 1) for d in (0, 1)], float)
        corners[:, :3] *= np.array(image_shape[::-1]) - 1
        apart = np.abs(corners @ (np.array(image.affine) - np.array(mask.affine)).T).max()
        if apart > max(image.spacing_mm):
            raise InputError(f"{where}: mask is up to {apart:.1f} mm away from its image; their affines must agree")


def write_nifti(path: str | Path, array: np.ndarray, affine: Affine | np.ndarray | None = None) -> Path:
    """Write (D, H, W) or (C, D, H, W) as NIfTI in (X, Y, Z[, C]); `affine` maps (W, H, D) to RAS+ mm."""
    import nibabel as nib

    array = np.asarray(array)
    assert array.ndim in (3, 4), array.shape
    array_XYZ = array.transpose(2, 1, 0) if array.ndim == 3 else array.transpose(3, 2, 1, 0)
    kinds = {"b": np.uint8, "i": np.int32, "u": np.int32, "f": np.float32}
    dtype = array.dtype if array.dtype in (np.uint8, np.int16) else kinds[array.dtype.kind]
    image = nib.Nifti1Image(array_XYZ.astype(dtype), np.eye(4) if affine is None else np.asarray(affine, float))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return Path(path)


# --------------------------------------------------------------------------------------- files -> (X, Y, Z, C), affine


def _load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    name = path.name.lower()
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_dir() and not name.endswith(SUFFIXES):
        raise InputError(f"{path}: unknown volume format; allowed: {', '.join(SUFFIXES)} or a folder of DICOM files")
    try:
        if path.is_dir():
            array, affine = _load_dicom(path)
        elif name.endswith(NIFTI):
            array, affine = _load_nifti(path)
        elif name.endswith(ITK):
            array, affine = _load_itk(path)
        else:
            array, affine = _load_npy(path)
    except InputError:
        raise
    except Exception as fault:  # nibabel, ITK and zlib raise two dozen kinds on broken files
        reason = (str(fault).strip() or type(fault).__name__).splitlines()[-1][:200]
        raise InputError(f"{path}: cannot be read, it may be corrupt or truncated ({reason})") from fault
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise InputError(f"{path}: its affine is not invertible, so voxels have no position or size; fix the header")
    return array, affine


def _load_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import nibabel as nib

    raw = path.read_bytes()
    is_gz = raw[:2] == b"\x1f\x8b"
    head = zlib.decompressobj(wbits=31).decompress(raw, 1024) if is_gz else raw[:1024]
    is_second = 540 in (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big"))
    header_class = nib.Nifti2Header if is_second else nib.Nifti1Header
    header = header_class(head[: header_class.template_dtype.itemsize])
    dtype, shape = header.get_data_dtype(), header.get_data_shape()
    if dtype.kind not in "biuf":
        raise InputError(f"{path}: voxels of type {dtype}; allowed: integers and floats")
    size = header.get_data_offset() + math.prod(shape) * dtype.itemsize
    _refuse_absurd(size, len(raw) * (_MOST_DEFLATE if is_gz else 1), shape, path)
    data = _gunzip(raw, size) if is_gz else raw
    image_class = nib.Nifti2Image if is_second else nib.Nifti1Image
    image = image_class.from_bytes(data)
    array = np.asanyarray(image.dataobj)
    if array.ndim == 5 and array.shape[3] == 1:  # NIfTI stores vectors after a time axis
        array = array[:, :, :, 0]
    return _with_channels(array, path), image.affine


def _gunzip(raw: bytes, size: int) -> bytes:
    """Decompress every member and verify its checksum (nibabel stops before it); about `size` bytes at most."""
    parts, left = [], size + 2**20
    while raw:
        member = zlib.decompressobj(wbits=31)
        parts.append(member.decompress(raw, left + 1))
        left -= len(parts[-1])
        if left < 0:
            raise ValueError(f"holds more than the {size} bytes stated in its header")
        if not member.eof:
            raise EOFError("the compressed data ends early")
        raw = member.unused_data.lstrip(b"\0")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _load_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    voxel = sitk.Image([1, 1, 1], reader.GetPixelID(), reader.GetNumberOfComponents())
    itemsize = sitk.GetArrayViewFromImage(voxel).nbytes
    _refuse_absurd(math.prod(reader.GetSize()) * itemsize, path.stat().st_size * _MOST_DEFLATE, reader.GetSize(), path)
    return _from_itk(reader.Execute(), path)


def _load_dicom(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # what matters is checked below
    reader = sitk.ImageSeriesReader()
    series = reader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise InputError(f"{folder}: holds {len(series)} DICOM series; give a folder that holds exactly one")
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series[0]))
    reader.MetaDataDictionaryArrayUpdateOn()
    image = reader.Execute()
    _check_slices(reader, image, folder)
    return _from_itk(image, folder)


def _check_slices(reader: SimpleITK.ImageSeriesReader, image: SimpleITK.Image, folder: Path) -> None:
    """Refuse a series with a missing or duplicate slice: ITK would read it and close the gap."""
    count = image.GetSize()[2]
    if count < 3 or not all(reader.HasMetaDataKey(i, "0020|0032") for i in range(count)):
        return
    places = [[float(v) for v in reader.GetMetaData(i, "0020|0032").split("\\")] for i in range(count)]
    steps = np.linalg.norm(np.diff(np.array(places), axis=0), axis=1)
    typical = float(np.median(steps))
    wrong = int(np.abs(steps - typical).argmax())
    if abs(steps[wrong] - typical) > 0.25 * typical:
        raise InputError(
            f"{folder}: slices {wrong} and {wrong + 1} are {steps[wrong]:.2f} mm apart, the others {typical:.2f} mm; "
            "a slice is missing or duplicate. Fix the series"
        )


def _from_itk(image: SimpleITK.Image, path: Path) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK as sitk

    array = sitk.GetArrayFromImage(image)
    axes = image.GetDimension()
    array = array.transpose(*reversed(range(axes)), *range(axes, array.ndim))
    direction = np.array(image.GetDirection()).reshape(axes, axes)
    affine = np.eye(4)
    if axes >= 3:
        affine[:3, :3] = direction[:3, :3] * image.GetSpacing()[:3]
        affine[:3, 3] = image.GetOrigin()[:3]
    # ITK's millimetres are LPS: x grows to the left, y to posterior.
    return _with_channels(array, path), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _load_npy(path: Path) -> tuple[np.ndarray, np.ndarray]:
    array = np.load(
        path, mmap_mode="r", allow_pickle=False
    )  # mapping refuses a header that states more than the file holds
    if array.dtype.kind not in "biuf":
        raise InputError(f"{path}: values of type {array.dtype}; allowed: integers and floats")
    array_CDHW = array[None] if array.ndim == 3 else array
    if array_CDHW.ndim != 4:
        raise InputError(f"{path}: shape {array.shape}; expected (D, H, W) or (C, D, H, W)")
    return np.array(array_CDHW).transpose(3, 2, 1, 0), np.eye(4)


def _with_channels(array: np.ndarray, path: Path) -> np.ndarray:
    if array.ndim == 3:
        return array[..., None]
    if array.ndim != 4:
        raise InputError(f"{path}: {array.ndim}-D {array.shape}; expected a volume (X, Y, Z) or (X, Y, Z, channels)")
    return array


def _refuse_absurd(size: int, most: int, shape: Sequence[int], path: Path) -> None:
    """Check a header against the file size before anything is allocated."""
    if any(n < 0 for n in shape) or size > most:
        raise InputError(
            f"{path}: header states {tuple(shape)}, {size} bytes; the file is too short: corrupt or truncated"
        )


# ------------------------------------------------------------------------------------------------------------- values


def _whole_labels(array: np.ndarray, path: Path) -> np.ndarray:
    if array.shape[3] != 1:
        raise InputError(f"{path}: a mask with {array.shape[3]} channels; expected one channel of labels")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):  # false for NaN too
        raise InputError(f"{path}: mask values run from {low} to {high}; allowed: whole numbers from 0 to 255")
    labels = array.astype(np.uint8)
    if array.dtype.kind == "f" and not (labels == array).all():
        raise InputError(f"{path}: mask holds values that are not whole numbers; is it a probability map?")
    return labels


def _compact(array: np.ndarray, path: Path) -> np.ndarray:
    """Return the same values as uint8 or int16 where both are whole and fit, else as float32."""
    if array.dtype in (np.uint8, np.int16) and array.dtype.isnative:
        return array
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"{path}: holds voxels that are NaN or infinite; fix the file or leave it out")
    if low >= -(2**15) and high < 2**15:
        small = array.astype(np.int16)
        if array.dtype.kind in "iu" or (small == array).all():
            return small
    if max(-low, high) > np.finfo(np.float32).max:
        raise InputError(f"{path}: values from {low:g} to {high:g} do not fit float32")
    return array.astype(np.float32)


def _array(volume: Volume | np.ndarray | Any) -> np.ndarray:
    return volume.array if isinstance(volume, Volume) else np.asarray(volume)
