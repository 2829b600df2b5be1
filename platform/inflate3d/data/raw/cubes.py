"""Cubes of a stated size in millimetres about places in a scan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from inflate3d.data.raw.readers import Volume, place_volume, read_volume
from inflate3d.errors import InputError


class Scans:
    """Scans turned to RAS. The last one is kept, since cases come scan by scan, but for pickling."""

    def __init__(self) -> None:
        self._last: tuple[Path, Volume] | None = None

    def read(self, path: Path) -> Volume:
        """Read a scan. InputError as `read_volume`."""
        if self._last is None or self._last[0] != path:
            self._last = (path, read_volume(path))
        return self._last[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"_last": None}


def cube_about(
    volume: Volume, position_mm: tuple[float, float, float], size_mm: int, *, beyond: int, where: str
) -> Volume:
    """Return the cube (C, size_mm, size_mm, size_mm) at 1 mm about a place (x, y, z) in LPS mm, as DICOM counts.

    The voxel nearest to the place is in its middle; voxels past the scan are `beyond`. InputError that starts with
    `where` for a place outside the scan.
    """
    box = _box(volume, position_mm, size_mm, beyond, where)
    placed = place_volume(box, orientation=None, spacing_mm=(1.0, 1.0, 1.0), nearest=False, where=Path(where))
    cube = _middle(placed, size_mm)
    return replace(cube, noticed=tuple(fact for fact in cube.noticed if fact.kind != "resampled"))


def _box(volume: Volume, position_mm: tuple[float, float, float], size_mm: int, beyond: int, where: str) -> Volume:
    """Return a box that holds the cube of size_mm about a place in LPS mm; voxels past the volume are `beyond`."""
    affine = np.asarray(volume.affine)
    x, y, z = position_mm
    index_WHD = np.linalg.inv(affine) @ np.array([-x, -y, z, 1.0])
    centre = np.rint(index_WHD[2::-1]).astype(int)
    shape = np.array(volume.array.shape[1:])
    if (centre < 0).any() or (centre >= shape).any():
        raise InputError(f"{where}: {position_mm} mm lies outside its scan; is the table of this set?")
    half = np.ceil(size_mm / 2 / np.array(volume.spacing_mm)).astype(int) + 1
    low, high = centre - half, centre + half + 1
    inside = tuple(slice(max(0, a), min(n, b)) for a, b, n in zip(low, high, shape, strict=True))
    pad = [(0, 0), *((max(0, -a), max(0, b - n)) for a, b, n in zip(low, high, shape, strict=True))]
    array = np.pad(volume.array[(slice(None), *inside)].astype(np.int16), pad, constant_values=beyond)
    affine = affine.copy()
    affine[:3, 3] = (affine @ np.array([*low[::-1], 1.0]))[:3]
    return replace(volume, array=array, affine=affine.tolist())


def _middle(volume: Volume, size: int) -> Volume:
    """Return the cube of `size` voxels in the middle of a volume."""
    low = [(n - size) // 2 for n in volume.array.shape[1:]]
    array = volume.array[(slice(None), *(slice(a, a + size) for a in low))]
    affine = np.asarray(volume.affine).copy()
    affine[:3, 3] = (affine @ np.array([*low[::-1], 1.0]))[:3]
    return replace(volume, array=np.ascontiguousarray(array), affine=affine.tolist())
