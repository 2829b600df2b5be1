"""Triangle meshes: reading OFF files, and which voxels of a grid a mesh fills."""

# V vertices, F faces, x y z as the file has them; D H W voxels along z y x.

from __future__ import annotations

from pathlib import Path

import numpy as np

from inflate3d.errors import InputError


def read_off(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices (V, 3) float64 and triangles (F, 3) int64 of an OFF file (Geomview's object file format).

    Faces of more corners are cut into fans. The first line may be "OFF" alone, or hold the counts as well, as many of
    ModelNet's do. InputError names the file, for one that is cut short, holds other words than numbers, or points at
    vertices that it lacks.
    """
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as fault:
        raise InputError(f"{path}: cannot be read as OFF text ({fault}); fetch it again") from fault
    lines = [line for full in text.splitlines() if (line := full.partition("#")[0].strip())]
    if not lines or not lines[0].startswith("OFF"):
        raise InputError(f"{path}: begins with {text[:12]!r}; expected an OFF file, which begins with OFF")
    lines = [rest, *lines[1:]] if (rest := lines[0][3:].strip()) else lines[1:]
    try:
        num_vertices, num_faces = (int(word) for word in lines[0].split()[:2])
        vertices = np.array([line.split()[:3] for line in lines[1 : 1 + num_vertices]], float).reshape(num_vertices, 3)
        faces = _triangles(lines[1 + num_vertices :], num_faces)
    except (ValueError, IndexError) as fault:
        raise InputError(f"{path}: is cut short or holds other words than numbers ({fault}); fetch it again") from fault
    if not len(faces) or not np.isfinite(vertices).all():
        raise InputError(f"{path}: holds {len(faces)} faces and {len(vertices)} vertices; expected a finite surface")
    if faces.min() < 0 or faces.max() >= num_vertices:
        raise InputError(f"{path}: a face has vertex {faces.max()}; the file holds 0 to {num_vertices - 1}")
    return vertices, faces


def _triangles(lines: list[str], num_faces: int) -> np.ndarray:
    """Return the triangles of lines `corners index index ...`; what follows there is a colour."""
    triangles: list[tuple[int, int, int]] = []
    if len(lines) != num_faces:
        raise ValueError(f"{len(lines)} of {num_faces} faces")
    for line in lines:
        count, *words = line.split()
        corners = [int(word) for word in words[: int(count)]]
        if len(corners) != int(count) or len(corners) < 3:
            raise ValueError(f"a face of {len(corners)} corners")
        triangles += [(corners[0], corners[i], corners[i + 1]) for i in range(1, len(corners) - 1)]
    return np.array(triangles, np.int64).reshape(-1, 3)


def voxelised(vertices: np.ndarray, faces: np.ndarray, size: int, *, margin: int = 1) -> np.ndarray:
    """Return (D, H, W) uint8, each of `size`: 1 where the surface passes or what it encloses lies, else 0.

    The longest edge of the mesh's box spans size - 2 * margin voxels, its middle is the grid's. z is along D.
    """
    import SimpleITK as sitk

    used = vertices[np.unique(faces)]
    low, high = used.min(0), used.max(0)
    scale = (size - 2 * margin - 1e-6) / max(float((high - low).max()), 1e-12)
    places = (vertices - (low + high) / 2) * scale + size / 2
    grid = np.zeros((size, size, size), np.uint8)
    for points in _on_the_surface(places[faces]):
        x, y, z = np.floor(points).astype(int).T
        grid[z, y, x] = 1
    filled: np.ndarray = sitk.GetArrayFromImage(sitk.BinaryFillhole(sitk.GetImageFromArray(grid), foregroundValue=1))
    return filled


def _on_the_surface(triangles: np.ndarray) -> list[np.ndarray]:
    """Return points (N, 3) of each triangle (F, 3, 3), at most half a voxel apart along its edges."""
    edges = np.linalg.norm(triangles - np.roll(triangles, 1, axis=1), axis=2).max(1)
    parts = np.maximum(np.ceil(2 * edges).astype(int), 1)
    found = []
    for n in np.unique(parts):
        i, j = np.nonzero(np.tri(n + 1)[::-1])
        weights = np.stack([i, j, n - i - j]) / n
        found.append(np.einsum("kn,fkd->fnd", weights, triangles[parts == n]).reshape(-1, 3))
    return found
