"""The position of voxels: turning axes to an orientation, and resampling to a spacing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from inflate3d.errors import InputError
from inflate3d.sample import Spacing

_MOST_VOXELS = 2**31


def turn(array_XYZC: np.ndarray, affine: np.ndarray, orientation: str) -> tuple[np.ndarray, np.ndarray]:
    """Flip and swap axes (views, no copy) until x, y, z grow as `orientation` says, as nearly as axes can."""
    from nibabel import orientations as nibo

    pairs = ("LR", "PA", "IS")
    if sorted(next((i for i, p in enumerate(pairs) if c in p), -1) for c in orientation) != [0, 1, 2]:
        raise InputError(f"orientation {orientation!r}; expected one letter each of L/R, P/A and I/S, such as 'RAS'")
    change = nibo.ornt_transform(nibo.io_orientation(affine), nibo.axcodes2ornt(tuple(orientation)))
    turned = nibo.apply_orientation(array_XYZC, change)
    return turned, affine @ nibo.inv_ornt_aff(change, array_XYZC.shape[:3])


def resample(
    array: np.ndarray, affine: np.ndarray, spacing_mm: Spacing, *, nearest: bool, where: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Resample (C, D, H, W) to a spacing (z, y, x); the volume's centre stays in place. The result is contiguous.

    Linear as float32, or `nearest` in the type given; as it is where the spacing is that already. Beside `array` and
    the result, at most a channel of each is held.
    """
    old, new = np.array(spacing_of(affine)[::-1]), np.array(spacing_mm[::-1], float)
    if not (len(new) == 3 and (new > 0).all()):
        raise InputError(f"{where}: spacing_mm is {spacing_mm}; expected three positive numbers (z, y, x)")
    if np.allclose(old, new, rtol=1e-3):
        return array, affine
    old_size = np.array(array.shape[:0:-1])
    size = np.maximum(1, np.rint(old_size * old / new)).astype(np.int64)
    if math.prod(int(n) for n in size) > _MOST_VOXELS:
        raise InputError(
            f"{where}: spacing {old[::-1].tolist()} mm resampled to {list(spacing_mm)} mm gives {size[::-1].tolist()} "
            "voxels (D, H, W); is its header right?"
        )
    # Centres coincide, so neither a rounded size nor a half voxel shifts the anatomy.
    first = ((old_size - 1) * old - (size - 1) * new) / 2
    resampled = np.empty((len(array), *size[::-1]), array.dtype if nearest else np.float32)
    for channel_DHW, into_DHW in zip(array, resampled, strict=True):
        _resample_channel(channel_DHW, into_DHW, old, new, first, nearest)
    change = np.diag([*(new / old), 1.0])
    change[:3, 3] = first / old
    return resampled, affine @ change


def _resample_channel(
    channel_DHW: np.ndarray, into_DHW: np.ndarray, old: np.ndarray, new: np.ndarray, first: np.ndarray, nearest: bool
) -> None:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(channel_DHW)
    image.SetSpacing(old.tolist())
    resample = sitk.ResampleImageFilter()
    resample.SetNumberOfThreads(1)  # a build runs one process per core
    resample.SetInterpolator(sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear)
    resample.SetOutputPixelType(image.GetPixelID() if nearest else sitk.sitkFloat32)
    resample.SetSize(into_DHW.shape[::-1])
    resample.SetOutputSpacing(new.tolist())
    resample.SetOutputOrigin(first.tolist())
    resample.SetOutputDirection(image.GetDirection())
    resampled = resample.Execute(image)
    del image  # a large volume is not held twice
    into_DHW[...] = sitk.GetArrayViewFromImage(resampled)


def axis_codes(affine: Any) -> str:
    """Return where x, y and z grow to, as nearly as axes can, such as "RAS"."""
    from nibabel.orientations import aff2axcodes

    return "".join(str(code) for code in aff2axcodes(np.asarray(affine, float)))


def spacing_of(affine: np.ndarray) -> Spacing:
    """Return the voxel size (z, y, x) that an affine from (W, H, D) indices states."""
    x, y, z = (float(v) for v in np.linalg.norm(affine[:3, :3], axis=0))
    return (z, y, x)
