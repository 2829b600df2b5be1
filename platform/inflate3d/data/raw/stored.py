"""What a file holds, before its values and axes are brought to ours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inflate3d.data.raw.noticed import Noticed

MILLIMETRES = {
    **dict.fromkeys(("", "mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1.0),
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers", "micrometre"), 1e-3),
    **dict.fromkeys(("nm", "nanometer", "nanometers"), 1e-6),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre"), 10.0),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1e3),
}
"""Of one unit of length, by the names that formats use; unnamed is taken for mm."""


@dataclass(frozen=True)
class Stored:
    """array_XYZC: the numbers as stored; slope and intercept turn them into values, one for all or one a slice along Z.

    affine: (X, Y, Z) indices to RAS+ millimetres. is_placed: whether the file says where its voxels lie.
    """

    array_XYZC: np.ndarray
    affine: np.ndarray
    slope: float | np.ndarray = 1.0
    intercept: float | np.ndarray = 0.0
    noticed: tuple[Noticed, ...] = ()
    is_placed: bool = True


def in_millimetres(affine: np.ndarray, unit: str, factor: float) -> tuple[np.ndarray, tuple[Noticed, ...]]:
    """Return an affine whose file states another unit than mm, in mm, and what is to be said of it."""
    if factor == 1.0:
        return affine, ()
    converted = np.diag([factor, factor, factor, 1.0]) @ affine
    sizes = ", ".join(f"{v:.4g}" for v in np.linalg.norm(converted[:3, :3], axis=0))
    return converted, (Noticed("units converted", f"from {unit} to mm: voxels of {sizes} mm along (x, y, z)"),)
