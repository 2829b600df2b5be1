"""The grid of a plan: the spacing that volumes are resampled to, and the patch that is cut from them."""

# Triples are (D, H, W), spacing (z, y, x) in mm.

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import cast

import numpy as np

from inflate3d.sample import Spacing, Triple

ANISOTROPY = 3.0  # nnU-Net's ANISO_THRESHOLD
MOST_PATCH_VOXELS = 128**3


def planned_spacing(shapes: Sequence[Triple], spacings_mm: Sequence[Spacing]) -> tuple[Spacing, str]:
    """Return the spacing (z, y, x) to resample to, and why.

    nnU-Net's rule (Isensee et al., doi:10.1038/s41592-020-01008-z; determine_fullres_target_spacing of its planner):
    the median along each axis; but where one axis has a spacing over 3 times the next, and fewer than a third of the
    voxels, the 10th percentile along it, not finer than the next.
    """
    spacings = np.array(spacings_mm, float)
    target = np.median(spacings, axis=0)
    worst = int(target.argmax())
    others = [axis for axis in range(3) if axis != worst]
    size = np.median(_resampled(shapes, spacings_mm, cast(Spacing, tuple(target))), axis=0)
    finest_mm = float(target[others].max())
    if target[worst] > ANISOTROPY * finest_mm and size[worst] * ANISOTROPY < size[others].min():
        finer = float(np.percentile(spacings[:, worst], 10))
        target[worst] = finer if finer >= finest_mm else max(finest_mm, finer) + 1e-5
        reason = f"median, but the 10th percentile along {'DHW'[worst]}, which is anisotropic (nnU-Net's rule)"
    else:
        reason = "median of the cases (nnU-Net's rule)"
    return cast(Spacing, tuple(float(f"{v:.6g}") for v in target)), reason


def median_shape(shapes: Sequence[Triple], spacings_mm: Sequence[Spacing], target_mm: Spacing | None) -> Triple:
    """Return the median (D, H, W) of the cases once they are resampled; target_mm None: as they are."""
    sizes = np.array(shapes, float) if target_mm is None else _resampled(shapes, spacings_mm, target_mm)
    return cast(Triple, tuple(int(n) for n in np.median(sizes, axis=0)))


def _resampled(shapes: Sequence[Triple], spacings_mm: Sequence[Spacing], target_mm: Spacing) -> np.ndarray:
    rounded: np.ndarray = np.round(np.array(shapes) * np.array(spacings_mm) / np.array(target_mm))
    return rounded


def planned_patch(median: Triple, stride: Triple, *, most_voxels: float) -> Triple:
    """Return a patch (D, H, W): a multiple of the net's stride, never larger than the median volume.

    It begins as the whole median volume and shrinks, a stride at a time, along the axis on which it covers most of the
    volume, as nnU-Net's patches do, until it holds `most_voxels`, or one stride an axis. An axis of the volume that is
    shorter than the stride is taken whole.
    """
    patch = [n - n % s if n >= s else n for n, s in zip(median, stride, strict=True)]
    while prod(patch) > most_voxels:
        free = [axis for axis in range(3) if patch[axis] > stride[axis]]
        if not free:
            break
        longest = max(free, key=lambda axis: (patch[axis] / median[axis], patch[axis]))
        patch[longest] -= stride[longest]
    return cast(Triple, tuple(patch))
