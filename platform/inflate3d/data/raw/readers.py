"""Reading volumes: every format gives (C, D, H, W) in a stated orientation and spacing.

D, H, W run along z, y, x. Millimetres are RAS+ (NIfTI's convention): x grows to the patient's right, y to anterior,
z to superior. A file in any other convention is turned; an oblique or sheared one keeps that in the affine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from inflate3d.data.raw.dicom_series import is_series, load_dicom
from inflate3d.data.raw.geometry import axis_codes, resample, spacing_of, turn
from inflate3d.data.raw.grid import shear_degrees
from inflate3d.data.raw.nifti import NIFTI, load_nifti
from inflate3d.data.raw.nifti import write_nifti as write_nifti
from inflate3d.data.raw.noticed import Noticed
from inflate3d.data.raw.nrrd_mha import ITK, load_itk
from inflate3d.data.raw.stored import Stored
from inflate3d.data.raw.values import image_values, label_values
from inflate3d.errors import InputError
from inflate3d.sample import Spacing

Affine = list[list[float]]
SUFFIXES = (*NIFTI, *ITK, ".npy")
_POINTERS = (b"version https://git-lfs", b"/annex/objects")


@dataclass(frozen=True)
class Volume:
    """array: (C, D, H, W), uint8, int16 or float32. spacing_mm: (z, y, x). affine: (W, H, D) index -> RAS+ mm.

    noticed: what is no error but worth a word. is_placed: whether the file says where its voxels lie; a .npy does not,
    so its affine counts voxels.
    """

    array: np.ndarray
    spacing_mm: Spacing
    affine: Affine
    noticed: tuple[Noticed, ...] = ()
    is_placed: bool = True


def read_volume(
    path: str | Path, *, orientation: str | None = "RAS", spacing_mm: Spacing | None = None, is_mask: bool = False
) -> Volume:
    """Read .nii, .nii.gz, .nrrd, .mha, .mhd, .npy, a folder that holds one DICOM series, or FOLDER/UID of several.

    `orientation` is where W, H and D grow to ("RAS"); None leaves the axes as stored. `spacing_mm` (z, y, x)
    resamples: linear for images, nearest for masks. Masks become uint8 after a check that they hold whole numbers from
    0 to 255, to within 0.001. Whole values that fit stay or become uint8 or int16; others, and interpolated ones, are
    float32. A .npy is read as (D, H, W) or (C, D, H, W) without anatomy. InputError for a file that is missing, broken,
    not finite or 2-D.
    """
    path = Path(path)
    stored = _load(path)
    if stored.array_XYZC.size == 0:
        raise InputError(f"{path}: holds no voxels, shape {stored.array_XYZC.shape[:3]} along (x, y, z)")
    array_XYZC = label_values(stored, path) if is_mask else image_values(stored, path)
    affine, noticed, is_placed = stored.affine, stored.noticed, stored.is_placed
    del stored
    as_stored = _volume(array_XYZC.transpose(3, 2, 1, 0), affine, noticed, is_placed)
    return place_volume(as_stored, orientation=orientation, spacing_mm=spacing_mm, nearest=is_mask, where=path)


def place_volume(
    volume: Volume, *, orientation: str | None, spacing_mm: Spacing | None, nearest: bool, where: Path
) -> Volume:
    """Return a volume turned to an orientation and resampled to a spacing, each if given; its array is contiguous.

    InputError that starts with `where` for a spacing that cannot be.
    """
    array, affine = volume.array, np.asarray(volume.affine)
    noticed = volume.noticed
    if orientation is not None and volume.is_placed:
        array_XYZC, affine = turn(array.transpose(3, 2, 1, 0), affine, orientation)
        array = array_XYZC.transpose(3, 2, 1, 0)
        if (codes := axis_codes(volume.affine)) != axis_codes(affine):
            noticed = (*noticed, Noticed("reoriented", f"from {codes} to {axis_codes(affine)}"))
    if spacing_mm is not None:
        if not volume.is_placed:
            raise InputError(
                f"{where}: a .npy states no spacing, so it cannot be resampled to {spacing_mm} mm; use NIfTI"
            )
        before = array
        array, affine = resample(array, affine, spacing_mm, nearest=nearest, where=where)
        if array is not before:
            sizes = (", ".join(f"{v:.4g}" for v in s) for s in (volume.spacing_mm, spacing_mm))
            noticed = (*noticed, Noticed("resampled", "from ({}) to ({}) mm along (z, y, x)".format(*sizes)))
    array = np.require(array, requirements=["C", "W"])
    return _volume(array, affine, noticed, volume.is_placed)


# --------------------------------------------------------------------------------------------- files -> what they hold


def _load(path: Path) -> Stored:
    if not path.exists() and not is_series(path):
        linked = f"a link to {path.readlink()}, which is not there; fetch it" if path.is_symlink() else "no such file"
        raise InputError(f"{path}: {linked}")
    try:
        stored = load_dicom(path) if is_series(path) else _loader(path)(path)
    except InputError:
        raise
    except OSError as fault:
        if fault.filename is None:
            raise InputError(f"{path}: cannot be read, it may be corrupt or truncated ({fault})") from fault
        raise InputError(
            f"{fault.filename}: cannot be read: {fault.strerror}; check its rights and the disk"
        ) from fault
    except Exception as fault:  # nibabel, ITK and zlib raise two dozen kinds on broken files
        reason = (str(fault).strip() or type(fault).__name__).splitlines()[-1][:200]
        raise InputError(f"{path}: cannot be read, it may be corrupt or truncated ({reason})") from fault
    axes = stored.affine[:3, :3]
    if not np.isfinite(stored.affine).all() or abs(np.linalg.det(axes)) <= 1e-9 * np.linalg.norm(axes, axis=0).prod():
        raise InputError(f"{path}: its affine is not invertible, so voxels have no position or size; fix the header")
    if any(fact.kind == "tilted" for fact in stored.noticed) or (angle := shear_degrees(stored.affine)) < 0.5:
        return stored
    text = f"its axes are up to {angle:.3g} degrees off the right angle; the affine holds the shear"
    return replace(stored, noticed=(*stored.noticed, Noticed("sheared", text)))


def _loader(path: Path) -> Callable[[Path], Stored]:
    """Return what reads a file of this name. InputError for another format, and for a file that was not fetched."""
    name = path.name.lower()
    with path.open("rb") as file:
        head = file.read(132)
    if head.startswith(_POINTERS):
        raise InputError(f"{path}: holds only a pointer to its content; fetch it (git lfs pull, git annex get)")
    for suffixes, load in ((NIFTI, load_nifti), (ITK, load_itk), ((".npy",), _load_npy)):
        if name.endswith(suffixes):
            return load
    hint = ""
    if head[128:] == b"DICM":
        hint = "; it is one DICOM file: give the folder of its series"
    elif name.endswith((".img", ".hdr")):
        hint = "; convert such a pair of files to one .nii.gz or .mha"
    allowed = f"{', '.join(SUFFIXES)} or a folder of DICOM files"
    raise InputError(f"{path}: unknown volume format; allowed: {allowed}{hint}")


def _load_npy(path: Path) -> Stored:
    array = np.load(
        path, mmap_mode="r", allow_pickle=False
    )  # mapping refuses a header that states more than the file holds
    if array.dtype.kind not in "biuf":
        raise InputError(f"{path}: values of type {array.dtype}; allowed: integers and floats")
    array_CDHW = array[None] if array.ndim == 3 else array
    if array_CDHW.ndim != 4:
        raise InputError(f"{path}: shape {array.shape}; expected (D, H, W) or (C, D, H, W)")
    return Stored(np.array(array_CDHW).transpose(3, 2, 1, 0), np.eye(4), is_placed=False)


def _volume(array: np.ndarray, affine: np.ndarray, noticed: tuple[Noticed, ...], is_placed: bool) -> Volume:
    return Volume(array, spacing_of(affine), [[float(v) for v in row] for row in affine], noticed, is_placed)
