"""U-Net style decoder: feature maps of any strides -> one logit map of the input's size."""

# B batch, C channels, D H W voxels along z y x.

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inflate3d.contracts import FeatureInfo, Features
from inflate3d.nn.heads import Head
from inflate3d.sample import Triple


class UNetDecoder(Head):
    """Decode a backbone's levels, deep to shallow, into logits (B, num_classes, D, H, W) of the input's size.

    Each level is resized to the next finer map's own size, so that odd sizes, depth reductions of 1 and any number of
    levels work alike; a last block refines at full resolution. GroupNorm alone: it keeps no running statistics, so a
    head that idles cannot drift, and it bears a batch of one and a map of one voxel.

    channels: width of the decoder at full resolution and at each level but the deepest, shallow to deep, which is as
    many numbers as there are levels. Default: 16 at full resolution, then 32, 64, ... and at most 256.
    """

    last_layer: ClassVar[str] = "classify."

    def __init__(self, feature_info: FeatureInfo, num_classes: int, *, channels: Sequence[int] | None = None) -> None:
        super().__init__()
        encoder = feature_info.channels()
        widths = list(channels) if channels is not None else default_channels(len(encoder))
        if len(widths) != len(encoder):
            raise ValueError(
                f"channels has {len(widths)} numbers, the backbone has {len(encoder)} levels; give one a level"
            )
        inputs = [*widths[1:], encoder[-1]]  # what comes up from below, at full resolution and at each level
        skips = [0, *encoder[:-1]]
        self.widths = widths
        self.blocks = nn.ModuleList(_Block(i + s, w) for i, s, w in zip(inputs, skips, widths, strict=True))
        self.classify = nn.Conv3d(widths[0], num_classes, kernel_size=1)

    def forward(self, features: Features) -> Tensor:
        """Return logits (B, num_classes, D, H, W)."""
        x = features.maps[-1]
        for block, skip in zip(list(self.blocks)[:0:-1], features.maps[-2::-1], strict=True):
            x = block(torch.cat([resize(x, _size(skip)), skip], dim=1))
        return self.classify(self.blocks[0](resize(x, features.size)))

    def describe(self) -> dict[str, Any]:
        """Return the number of classes and the widths."""
        return {"num_classes": self.classify.out_channels, "channels": list(self.widths)}


def default_channels(num_levels: int) -> list[int]:
    """Return decoder widths: 16 at full resolution, then doubling from 32 up to 256."""
    return [min(16 * 2**i, 256) for i in range(num_levels)]


def resize(x: Tensor, size: Triple) -> Tensor:
    """Return (B, C, D, H, W) resized to `size` by trilinear interpolation."""
    return x if _size(x) == tuple(size) else F.interpolate(x, size=size, mode="trilinear", align_corners=False)


class _Block(nn.Sequential):
    """Two times: 3x3x3 convolution, GroupNorm, LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [
                nn.Conv3d(channels, out_channels, kernel_size=3, padding=1, bias=False),
                nn.GroupNorm(_groups(out_channels), out_channels),
                nn.LeakyReLU(0.01, inplace=True),
            ]
        super().__init__(*layers)


def _groups(channels: int) -> int:
    # At least two channels a group: with one, a map of a single voxel would have no variance to normalise by.
    return math.gcd(channels // 2, 8) if channels % 2 == 0 else 1


def _size(x: Tensor) -> Triple:
    return (x.shape[2], x.shape[3], x.shape[4])
