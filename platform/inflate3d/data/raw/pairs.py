"""What must fit together: the channels of one image, and a mask and its image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from inflate3d.data.raw.grid import far_apart, turned_onto
from inflate3d.data.raw.noticed import Noticed
from inflate3d.data.raw.readers import Volume
from inflate3d.errors import InputError


def on_grid_of(volume: Volume, image: Volume, *, where: str) -> Volume:
    """Return a volume on the grid of an image, both as stored: its axes turned to the image's where they differ.

    A .npy beside an image with a place is taken to hold the image's voxels as they are stored. InputError that starts
    with `where` if the grids are not the same (`grid.TOLERANCE`).
    """
    if volume.is_placed or not image.is_placed:
        array = turned_onto(volume.array, volume.affine, image.array.shape[1:], image.affine, where=where)
        noticed = volume.noticed
    else:
        array = volume.array
        if array.shape[1:] != image.array.shape[1:]:
            raise InputError(
                f"{where} is {array.shape[1:]} along (D, H, W), the image is stored as {image.array.shape[1:]}; a .npy "
                "states no place, so it must hold the voxels as the image's file does"
            )
        noticed = (*volume.noticed, Noticed("place unstated", "a .npy is taken to lie as its image is stored"))
    return replace(image, array=array, noticed=noticed)


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
        if image.is_placed != mask.is_placed:
            raise InputError(f"{where}: only one of image and mask says where its voxels lie; give both as NIfTI")
        if wrong := far_apart(mask.affine, image.affine, image_shape[::-1]):
            raise InputError(f"{where}: mask {wrong}")


def _array(volume: Volume | np.ndarray | Any) -> np.ndarray:
    return volume.array if isinstance(volume, Volume) else np.asarray(volume)
