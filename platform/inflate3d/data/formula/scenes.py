"""Scenes: solids and organ shapes in one volume, with the label and the number of each object.

After randomised synthesis of anatomy from shapes (anatomix: Dey et al., arXiv:2411.02372).
"""

# D H W voxels along z y x.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inflate3d.data.formula.rendering import Shape, scan, smooth_noise
from inflate3d.data.formula.solids import Solid, draw_turn, occupancy, vary


@dataclass(frozen=True)
class Scene:
    """filled: how much of each voxel each object fills, with its box, in the order in which they were laid down.

    labels: (D, H, W) uint8, the class of what lies on top; 0 is the background.
    """

    filled: list[tuple[np.ndarray, tuple[slice, slice, slice]]]
    labels: np.ndarray


def draw_scene(solids: Sequence[Solid], organs: Sequence[np.ndarray], shape: Shape, draw: np.random.Generator) -> Scene:
    """Draw 8 to 20 objects, each an instance of a solid or a warped organ (D, H, W) bool. Classes: solids, organs."""
    labels, filled = np.zeros(shape, np.uint8), []
    for _ in range(int(draw.integers(8, 21))):
        kind = int(draw.integers(len(solids) + len(organs)))
        middle = draw.uniform(0, 1, 3) * (np.array(shape) - 1)
        radius = min(shape) * float(draw.uniform(0.15, 0.45))
        if kind < len(solids):
            solid = vary(solids[kind], draw, hollow=0.1)
            part, box = occupancy(solid, shape, middle=middle, radius=radius, turn=draw_turn(draw))
        else:
            part, box = _place(organs[kind - len(solids)], shape, middle=middle, radius=radius, draw=draw)
        filled.append((part, box))
        labels[box][part > 0.5] = kind + 1
    return Scene(filled, labels)


def render(scene: Scene, draw: np.random.Generator) -> np.ndarray:
    """Return the scene in a contrast of its own, (D, H, W) uint8: each object has an intensity and a texture.

    A voxel that several objects share has a mixture of theirs (partial volume).
    """
    shape = scene.labels.shape
    texture = smooth_noise(shape, draw, cells=int(draw.integers(4, 12)))
    image = np.full(shape, draw.uniform(0, 1), np.float32) + float(draw.uniform(0, 0.1)) * texture
    for part, box in scene.filled:
        own = draw.uniform(0, 1) + float(draw.uniform(-0.1, 0.1)) * texture[box]
        image[box] += part * (own - image[box])
    return scan(image, draw)


def _place(
    organ_DHW: np.ndarray, shape: Shape, *, middle: np.ndarray, radius: float, draw: np.random.Generator
) -> tuple[np.ndarray, tuple[slice, slice, slice]]:
    """Return an organ turned, stretched and bent, sampled to the nearest voxel, as `occupancy` does for solids."""
    low = np.clip(np.floor(middle - radius).astype(int), 0, None)
    high = np.minimum(np.ceil(middle + radius + 1).astype(int), shape)
    box = tuple(slice(int(a), int(max(a, b))) for a, b in zip(low, high, strict=True))
    sizes = [s.stop - s.start for s in box]
    if min(sizes) == 0:
        return np.zeros(sizes, np.float32), box  # type: ignore[return-value]
    axes = [np.arange(s.start, s.stop, dtype=np.float32) - m for s, m in zip(box, middle, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij")) / radius
    # Bent: each coordinate moves with a wave of the next.
    waves = np.sin(2.5 * points[[1, 2, 0]] + draw.uniform(0, 2 * np.pi, (3, 1, 1, 1)).astype(np.float32))
    stretch = np.exp(draw.normal(0, 0.15, 3)).astype(np.float32)
    own = (stretch[:, None] * draw_turn(draw)) @ (points + np.float32(0.15) * waves).reshape(3, -1)
    half = (np.array(organ_DHW.shape, np.float32) - 1) / 2
    place = np.rint(half[:, None] + own * half.max()).astype(int).reshape(3, *sizes)
    inside = np.logical_and.reduce([(p >= 0) & (p < n) for p, n in zip(place, organ_DHW.shape, strict=True)])
    z, y, x = (np.clip(p, 0, n - 1) for p, n in zip(place, organ_DHW.shape, strict=True))
    return (organ_DHW[z, y, x] & inside).astype(np.float32), box  # type: ignore[return-value]
