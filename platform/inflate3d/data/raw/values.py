"""The values of voxels: stored numbers as uint8, int16 or float32, and masks as whole labels."""

# X Y Z voxels as stored, C channel.

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from inflate3d.data.raw.stored import Stored
from inflate3d.errors import InputError

WHOLE_WITHIN = 1e-3
"""How far a mask's values may lie from whole numbers, after slope and intercept: rounding, not probabilities."""
_SLAB_VOXELS = 2**17


def image_values(stored: Stored, path: Path) -> np.ndarray:
    """Return (X, Y, Z, C) as uint8 or int16 where all values are whole and fit, else as float32.

    Values are slope * number + intercept in float64. At most one array of the result's size is made beside the stored
    one. InputError for values that are not finite or do not fit float32.
    """
    array = stored.array_XYZC
    if _is_plain(stored) and array.dtype in (np.uint8, np.int16) and array.dtype.isnative:
        return array
    if _is_plain(stored) and array.dtype.kind == "b":
        return array.astype(np.uint8)
    low, high, whole = math.inf, -math.inf, True
    for _, slab in _slabs(stored):
        low, high = min(low, float(slab.min())), max(high, float(slab.max()))
        if not (math.isfinite(low) and math.isfinite(high)) or np.isnan(slab).any():
            raise InputError(f"{path}: holds voxels that are NaN or infinite; fix the file or leave it out")
        whole = whole and (slab.dtype.kind in "iu" or bool((np.rint(slab) == slab).all()))
    if whole and low >= -(2**15) and high < 2**15:
        return _filled(stored, np.dtype(np.int16))
    if max(-low, high) > np.finfo(np.float32).max:
        raise InputError(f"{path}: values from {low:g} to {high:g} do not fit float32")
    return _filled(stored, np.dtype(np.float32))


def label_values(stored: Stored, path: Path) -> np.ndarray:
    """Return (X, Y, Z, 1) uint8: whole numbers from 0 to 255, rounded where they lie within WHOLE_WITHIN of one.

    InputError for several channels and for other values.
    """
    if stored.array_XYZC.shape[3] != 1:
        raise InputError(f"{path}: a mask with {stored.array_XYZC.shape[3]} channels; expected one channel of labels")
    if _is_plain(stored) and stored.array_XYZC.dtype in (np.uint8, bool):
        return stored.array_XYZC.view(np.uint8)
    labels = np.empty(stored.array_XYZC.shape, np.uint8, order="F")
    for part, slab in _slabs(stored):
        rounded = np.rint(slab) if slab.dtype.kind == "f" else slab
        low, high = rounded.min(), rounded.max()
        if not (low >= 0 and high <= 255):  # false for NaN too
            raise InputError(
                f"{path}: mask values run from {slab.min():g} to {slab.max():g}; allowed: whole numbers from 0 to 255"
            )
        if slab.dtype.kind == "f" and (off := np.abs(slab - rounded)).max() > WHOLE_WITHIN:
            raise InputError(
                f"{path}: mask holds {slab.flat[int(off.argmax())]:g}; allowed: whole numbers, to within "
                f"{WHOLE_WITHIN}. Is it a probability map?"
            )
        labels[:, :, part] = rounded.astype(np.uint8)
    return labels


def _is_plain(stored: Stored) -> bool:
    return bool(np.all(np.asarray(stored.slope) == 1.0) and np.all(np.asarray(stored.intercept) == 0.0))


def _filled(stored: Stored, dtype: np.dtype) -> np.ndarray:
    values = np.empty(stored.array_XYZC.shape, dtype, order="F")
    for part, slab in _slabs(stored):
        values[:, :, part] = slab
    return values


def _slabs(stored: Stored) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the values a few slices at a time: numbers as they are where there is nothing to scale, else float64."""
    array = stored.array_XYZC
    depth = array.shape[2]
    step = max(1, _SLAB_VOXELS // max(1, array.size // depth))
    plain = _is_plain(stored)
    slope, intercept = (np.broadcast_to(np.asarray(v, float), (depth,)) for v in (stored.slope, stored.intercept))
    for start in range(0, depth, step):
        part = slice(start, min(depth, start + step))
        slab = array[:, :, part]
        if not plain:
            slab = slab * slope[part, None] + intercept[part, None]
        yield part, slab
