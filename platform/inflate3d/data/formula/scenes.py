"""Scenes: solids and organ shapes in one volume, with the label of each object.

After randomised synthesis of anatomy from shapes (anatomix: Dey et al., arXiv:2411.02372).
"""

# D H W voxels along z y x.

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from inflate3d.data.formula.rendering import Shape, blur, scan, smooth_noise
from inflate3d.data.formula.solids import Solid, draw_turn

Box = tuple[slice, slice, slice]
Turning = Callable[[np.random.Generator], np.ndarray]
_BEND = 0.1  # of the radius
_SMALLER = 1.1  # so that what is bent and stretched stays in its box


@dataclass(frozen=True)
class Scene:
    """filled: how much of each voxel each object fills, with its box, in the order in which they were laid down.

    labels: (D, H, W) uint8, the class of what lies on top; 0 is the background.
    """

    filled: list[tuple[np.ndarray, Box]]
    labels: np.ndarray


def form_of_solid(solid: Solid, edge: int) -> np.ndarray:
    """Return a form, (edge, edge, edge) float32: how many cells about each cell is outside a shape, negative inside.

    The ball that holds the solid touches the cube's faces.
    """
    middle, reach = solid.sphere()
    axis = np.linspace(-1, 1, edge, dtype=np.float32) * np.float32(reach)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij")).reshape(3, -1) + middle[:, None]
    return _closed(solid.distance(points).reshape(edge, edge, edge) * ((edge - 1) / 2 / reach))


def form_of_organ(organ_DHW: np.ndarray, edge: int) -> np.ndarray:
    """Return the form of an organ (D, H, W) bool, which fills the cube along its longest axis."""
    longest = max(organ_DHW.shape)
    mask = organ_DHW
    for axis, n in enumerate(organ_DHW.shape):
        places = np.rint((n - 1) / 2 + np.linspace(-0.5, 0.5, edge) * (longest - 1)).astype(int)
        is_known = ((places >= 0) & (places < n)).reshape([-1 if i == axis else 1 for i in range(3)])
        mask = mask.take(np.clip(places, 0, n - 1), axis) & is_known
    # At a flat border a blurred step falls by 1 / (sqrt(2 pi) sigma) a cell.
    return _closed((0.5 - blur(mask.astype(np.float32), sigma=0.7)) * (np.sqrt(2 * np.pi) * 0.7))


def _closed(form: np.ndarray) -> np.ndarray:
    form = form.astype(np.float32)
    for axis in range(3):
        for face in (0, -1):
            form[(slice(None),) * axis + (face,)] = len(form)
    return form


def draw_scene(
    forms: Sequence[np.ndarray], shape: Shape, draw: np.random.Generator, *, draw_turn: Turning = draw_turn
) -> Scene:
    """Draw 8 to 20 objects, each a form that is turned, stretched, bent and perhaps hollow. Classes: those of forms."""
    labels, filled = np.zeros(shape, np.uint8), []
    for _ in range(int(draw.integers(8, 21))):
        kind = int(draw.integers(len(forms)))
        middle = draw.uniform(0, 1, 3) * (np.array(shape) - 1)
        radius = min(shape) * float(draw.uniform(0.15, 0.45))
        part, box = place(forms[kind], shape, middle=middle, radius=radius, draw=draw, draw_turn=draw_turn)
        filled.append((part, box))
        np.copyto(labels[box], np.uint8(kind + 1), where=part > 0.5)
    return Scene(filled, labels)


def render(scene: Scene, draw: np.random.Generator) -> np.ndarray:
    """Return the scene in a contrast of its own, (D, H, W) uint8: each object has an intensity and a texture.

    A voxel that several objects share has a mixture of theirs (partial volume).
    """
    shape = scene.labels.shape
    texture = smooth_noise(shape, draw, cells=int(draw.integers(4, 12)))
    image = np.full(shape, draw.uniform(0, 1), np.float32) + float(draw.uniform(0, 0.1)) * texture
    for part, box in scene.filled:
        behind = image[box]
        change = float(draw.uniform(-0.1, 0.1)) * texture[box]
        change += draw.uniform(0, 1)
        change -= behind
        change *= part
        behind += change
    return scan(image, draw)


def place(
    form: np.ndarray,
    shape: Shape,
    *,
    middle: np.ndarray,
    radius: float,
    draw: np.random.Generator,
    draw_turn: Turning = draw_turn,
) -> tuple[np.ndarray, Box]:
    """Return how much of each voxel an object fills, float32 in 0..1, in the box of the grid that can hold it.

    middle: (z, y, x) in voxels; radius: in voxels. Each voxel takes the nearest cell of the form.
    """
    box: Box = tuple(_range(m, radius, n) for m, n in zip(middle.tolist(), shape, strict=True))  # type: ignore[assignment]
    edge, half = len(form), (len(form) - 1) / 2
    stretch = np.exp(draw.normal(0, 0.15, 3))
    stretch *= _SMALLER / stretch.min()
    turn = (half * stretch[:, None] * draw_turn(draw)).astype(np.float32)
    bent = _bent([(np.arange(s.start, s.stop) - m) / radius for s, m in zip(box, middle, strict=True)], draw)
    nearest: np.ndarray = np.uint32(0)  # type: ignore[assignment]
    for row in turn:
        cell = row[0] * bent[0] + row[1] * bent[1]
        cell += row[2] * bent[2] + np.float32(half + 0.5)
        # What is below 0 becomes large, and so the last cell: all faces of a form hold the same.
        whole = cell.astype(np.int32).view(np.uint32)
        nearest = nearest * np.uint32(edge) + np.minimum(whole, np.uint32(edge - 1), out=whole)
    outside = form.ravel().take(nearest)
    if draw.random() < 0.1:
        wall = np.float32(draw.uniform(0.1, 0.2) * half)
        outside = np.abs(outside + wall / 2) - wall / 2
    outside *= np.float32(-radius / (half * float(stretch.mean())))
    outside += np.float32(0.5)
    return np.minimum(np.maximum(outside, np.float32(0), out=outside), np.float32(1), out=outside), box


def _range(middle: float, radius: float, size: int) -> slice:
    """Return the voxels of an axis within a radius, and one more."""
    low = max(math.floor(middle - radius), 0)
    return slice(low, max(low, min(math.ceil(middle + radius + 1), size)))


def _bent(axes: Sequence[np.ndarray], draw: np.random.Generator) -> list[np.ndarray]:
    """Return the coordinates of a grid, each moved with a wave of the next: every one is the same along one axis."""
    found = []
    for i, phase in enumerate(draw.uniform(0, 2 * np.pi, 3)):
        own, following = ([-1 if j == k % 3 else 1 for j in range(3)] for k in (i, i + 1))
        wave = _BEND * np.sin(2.5 * axes[(i + 1) % 3] + phase)
        found.append((axes[i].reshape(own) + wave.reshape(following)).astype(np.float32))
    return found
