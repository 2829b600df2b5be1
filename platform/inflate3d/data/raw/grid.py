"""One notion of the same grid: the same voxels at the same places, their axes in any order and direction."""

# W H D voxels along x y z; an affine maps (W, H, D) indices to RAS+ millimetres.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from inflate3d.errors import InputError

TOLERANCE = 0.1
"""How far the corners of two grids may lie apart, in voxels of the smallest size along any axis."""


def corners_apart_mm(affine: Any, other: Any, shape_WHD: Sequence[int]) -> float:
    """Return the largest distance between the same corner voxel of two grids of one shape, in mm."""
    corners = np.array([[w, h, d, 1.0] for w in (0, 1) for h in (0, 1) for d in (0, 1)])
    corners[:, :3] *= np.array(shape_WHD, float) - 1
    moved = corners @ (np.asarray(affine, float) - np.asarray(other, float)).T
    return float(np.linalg.norm(moved[:, :3], axis=1).max())


def smallest_mm(affine: Any) -> float:
    """Return the smallest voxel size along an axis, in mm."""
    return float(np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0).min())


def shear_degrees(affine: Any) -> float:
    """Return how far the axes of a grid are off the right angle, at most."""
    axes = np.asarray(affine, float)[:3, :3]
    unit = axes / np.linalg.norm(axes, axis=0)
    cosines = np.abs([unit[:, 0] @ unit[:, 1], unit[:, 1] @ unit[:, 2], unit[:, 0] @ unit[:, 2]])
    return float(np.degrees(np.arcsin(np.clip(cosines.max(), 0, 1))))


def far_apart(affine: Any, onto_affine: Any, shape_WHD: Sequence[int]) -> str | None:
    """Return what is wrong with the place of a grid against another of its shape; None if their corners agree."""
    apart, most = corners_apart_mm(affine, onto_affine, shape_WHD), TOLERANCE * smallest_mm(onto_affine)
    if apart <= most * (1 + 1e-6):
        return None
    return (
        f"lies up to {apart:.3g} mm away; at most {most:.2g} mm ({TOLERANCE} voxel) is rounding. "
        "Resample it onto that grid, or mend its affine"
    )


def turned_onto(
    array_CDHW: np.ndarray, affine: Any, onto_shape_DHW: Sequence[int], onto_affine: Any, *, where: str
) -> np.ndarray:
    """Return an array with its axes swapped and flipped until its voxels lie in the other grid's order; a view.

    InputError that starts with `where` if the two are not the same grid: unlike shape, or corners further apart than
    TOLERANCE, in which case it states the distance.
    """
    swap, flips = _axes_between(np.asarray(onto_affine, float), np.asarray(affine, float), where)
    shape_WHD = array_CDHW.shape[:0:-1]
    turned_shape = tuple(shape_WHD[axis] for axis in swap)
    if turned_shape[::-1] != tuple(onto_shape_DHW):
        raise InputError(f"{where} is {turned_shape[::-1]} along (D, H, W), not {tuple(onto_shape_DHW)}")
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for axis, (own, flip) in enumerate(zip(swap, flips, strict=True)):
        change[own, axis] = -1 if flip else 1
        change[own, 3] = shape_WHD[own] - 1 if flip else 0
    turned_affine = np.asarray(affine, float) @ change
    if wrong := far_apart(turned_affine, onto_affine, turned_shape):
        raise InputError(f"{where} {wrong}")
    array_CWHD = array_CDHW.transpose(0, 3, 2, 1).transpose(0, *(1 + axis for axis in swap))
    array_CWHD = array_CWHD[(slice(None), *(slice(None, None, -1 if flip else 1) for flip in flips))]
    return array_CWHD.transpose(0, 3, 2, 1)


def _axes_between(onto: np.ndarray, affine: np.ndarray, where: str) -> tuple[list[int], list[bool]]:
    """Return, for each axis (W, H, D) of one grid, which axis of the other runs along it, and whether backwards."""
    change = np.linalg.inv(onto[:3, :3]) @ affine[:3, :3]
    swap = [int(np.abs(row).argmax()) for row in change]
    if sorted(swap) != [0, 1, 2]:
        raise InputError(f"{where} has axes askew to the other's; resample it onto that grid")
    return swap, [bool(row[axis] < 0) for row, axis in zip(change, swap, strict=True)]
