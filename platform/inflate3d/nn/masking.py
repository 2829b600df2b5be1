"""Masking: blocks of an image that a net does not see."""

# B batch, D H W voxels or time and pixels.

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, interpolate

from inflate3d.sample import Triple


def draw_blocks(batch: int, size: Triple, *, block: Triple, share: float, generator: torch.Generator) -> Tensor:
    """Return which voxels are hidden, (B, 1, D, H, W) bool: of each sample as many whole blocks, at least one.

    size: (D, H, W) of the image; a block may leave it. share: of the blocks, above 0 and below 1; at least one stays.
    """
    counts = [-(-n // b) for n, b in zip(size, block, strict=True)]
    total = math.prod(counts)
    hidden = min(max(round(share * total), 1), max(total - 1, 1))
    order = torch.rand(batch, total, generator=generator).argsort(dim=1)
    drawn = torch.zeros(batch, total, dtype=torch.bool).scatter_(1, order[:, :hidden], True)
    mask = drawn.view(batch, 1, *counts)
    for axis, n in enumerate(block, start=2):
        mask = mask.repeat_interleave(n, dim=axis)
    return mask[:, :, : size[0], : size[1], : size[2]]


def block_statistics(image: Tensor, *, block: Triple) -> tuple[Tensor, Tensor]:
    """Return the mean and the deviation of the block that each voxel of an image (B, C, D, H, W) lies in, float32.

    What is left of a block at an edge counts as a block. Targets of masked modelling are normalised by them (He et
    al., arXiv:2111.06377, section 4.1).
    """
    size = image.shape[2:]

    def mean(x: Tensor) -> Tensor:
        pooled = avg_pool3d(x, block, block, ceil_mode=True, count_include_pad=False)
        whole = interpolate(pooled, scale_factor=[float(n) for n in block], mode="nearest")
        return whole[..., : size[0], : size[1], : size[2]]

    image = image.float()
    middle = mean(image)
    return middle, (mean((image - middle).square()) + 1e-4).sqrt()
