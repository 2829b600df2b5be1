"""Surfaces of two masks, and how far they lie from each other, in mm."""

# D H W voxels along z y x, N places.

from __future__ import annotations

import math

import numpy as np

from inflate3d.sample import Spacing


def surface_distances_mm(one_DHW: np.ndarray, other_DHW: np.ndarray, spacing_mm: Spacing) -> tuple[float, float]:
    """Return the 95 % Hausdorff distance and the average symmetric surface distance of two masks of one shape.

    HD95: of the distances from each place of one surface to the nearest of the other, the 95th percentile (NumPy's
    linear one); the larger of both directions. Average: of all these distances, both ways (Metrics Reloaded,
    arXiv:2206.01653). Both empty: NaN, nothing is said; one alone: infinity.
    """
    from scipy.spatial import cKDTree

    one, other = (surface_mm(mask, spacing_mm) for mask in (one_DHW, other_DHW))
    if not len(one) or not len(other):
        nothing = math.nan if len(one) == len(other) else math.inf
        return nothing, nothing
    there, back = cKDTree(other).query(one)[0], cKDTree(one).query(other)[0]
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return float(hd95), float(np.concatenate([there, back]).mean())


def surface_mm(mask_DHW: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """Return where the surface of a mask lies, (N, 3) in mm: the centres of its voxels with a face to the outside."""
    from scipy import ndimage

    return np.argwhere(mask_DHW & ~ndimage.binary_erosion(mask_DHW)) * np.asarray(spacing_mm)
