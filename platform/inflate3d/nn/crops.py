"""Crops: boxes of one image that are drawn, cut and resized, with where each lies."""

# B batch, C channel, D H W voxels.

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from inflate3d.sample import Triple


@dataclass(frozen=True)
class Crop:
    """start, size: (D, H, W) in voxels of the image. flipped: axes of (D, H, W) that run backwards."""

    start: Triple
    size: Triple
    flipped: tuple[int, ...] = ()

    def of(self, image: Tensor, *, size: Triple | None = None) -> Tensor:
        """Return what it cuts of images (B, C, D, H, W); size: interpolated to it."""
        d, h, w = (slice(a, a + n) for a, n in zip(self.start, self.size, strict=True))
        cut = image[:, :, d, h, w].flip([axis + 2 for axis in self.flipped])
        if size is None or tuple(size) == self.size:
            return cut
        return interpolate(cut, size=size, mode="trilinear", align_corners=False)

    def sample(self, maps: Tensor, points: Tensor) -> Tensor:
        """Return what maps (B, C, d, h, w) of the crop hold at points (N, 3) of the image, (B, N, C), linearly.

        points: (z, y, x) in voxels of the image; a voxel's middle is at its index plus one half.
        """
        start, size = (points.new_tensor(v) for v in (self.start, self.size))
        place = (points - start) / size * 2 - 1
        sign = place.new_tensor([-1.0 if axis in self.flipped else 1.0 for axis in range(3)])
        grid = (place * sign).flip(-1).view(1, 1, 1, -1, 3).expand(len(maps), -1, -1, -1, -1).to(maps.dtype)
        return grid_sample(maps, grid, padding_mode="border", align_corners=False)[:, :, 0, 0].transpose(1, 2)

    def marks(self, labelled: Iterable[tuple[int, Tensor]], stride: Triple) -> Tensor:
        """Return (D, H, W) int64 of the crop, on the CPU: each label in a box about its point, 0 elsewhere.

        labelled: (label, point (3,) in voxels of the image) of points in the crop. A box is one voxel along D, so that
        points of one slice are seen in one, and as wide as `stride` along H and W, or what a person sees.
        """
        marks = torch.zeros(self.size, dtype=torch.int64)
        for label, point in labelled:
            box = []
            for axis, (p, start, size) in enumerate(zip(point.tolist(), self.start, self.size, strict=True)):
                place = p - start
                place = size - place if axis in self.flipped else place
                edge = 1 if axis == 0 else max(stride[axis], size // _SMALLEST)
                low = max(0, min(int(place - (edge - 1) / 2), size - edge))
                box.append(slice(low, low + edge))
            marks[tuple(box)] = label
        return marks


_SMALLEST = 20
"""Of the crop's edge, the share that a mark has at least."""


def draw_crop(
    size: Triple, *, least: float, most: float, generator: torch.Generator, flips: tuple[int, ...] = ()
) -> Crop:
    """Draw a box whose edges are `least` to `most` of the image's; axes of `flips` run backwards half the time."""
    share = least + (most - least) * float(torch.rand((), generator=generator))
    edges = tuple(max(1, min(n, round(share * n))) for n in size)
    start = tuple(int(torch.randint(n - e + 1, (), generator=generator)) for n, e in zip(size, edges, strict=True))
    flipped = tuple(axis for axis in flips if torch.rand((), generator=generator) < 0.5)
    return Crop(start, edges, flipped)  # type: ignore[arg-type]


def common_cells(a: Crop, b: Crop, stride: Triple) -> Tensor:
    """Return the middles (N, 3) of the cells of edge `stride` that lie in both crops, in voxels of the image."""
    low = [max(x, y) for x, y in zip(a.start, b.start, strict=True)]
    high = [min(x + n, y + m) for x, n, y, m in zip(a.start, a.size, b.start, b.size, strict=True)]
    axes = [
        torch.arange(lo + s / 2, hi - s / 2 + 1e-6, s) if hi - lo >= s else torch.empty(0)
        for lo, hi, s in zip(low, high, stride, strict=True)
    ]
    return torch.cartesian_prod(*axes).view(-1, 3)
