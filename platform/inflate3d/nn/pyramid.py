"""Finer levels for encoders whose finest map is coarse, such as plain ViTs."""

# B batch, C channels, D H W voxels along z y x.

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from inflate3d.sample import Triple

FINEST = 4  # the reduction of H and W from which a decoder's own resizing is enough


class Pyramid(nn.Module):
    """Put levels before the finest map, each twice as fine, by one transposed convolution each, until /4.

    After the simple feature pyramid of ViTDet (arXiv:2203.16527), which makes all levels of a plain ViT's last map.
    D is made finer in the same steps for as long as the encoder has reduced it.
    """

    def __init__(self, channels: int, reduction_dhw: Triple) -> None:
        super().__init__()
        along_d, _, spatial = reduction_dhw
        self.channels: list[int] = []
        self.ups = nn.ModuleList()
        for step in range(max(round(math.log2(spatial / FINEST)), 0), 0, -1):
            scale = 2**step
            width = max(channels // scale, min(channels, 32))
            stride = (math.gcd(scale, along_d), scale, scale)
            self.ups.append(_Up(channels, width, stride))
            self.channels.append(width)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps with the finer ones before them: (B, C_l, D_l, H_l, W_l), shallow to deep."""
        return [*(up(maps[0]) for up in self.ups), *maps]


class _Up(nn.Sequential):
    """GroupNorm over all channels, since plain ViTs give maps before their last norm; then a transposed convolution."""

    def __init__(self, channels: int, width: int, stride: Triple) -> None:
        super().__init__(nn.GroupNorm(1, channels), nn.ConvTranspose3d(channels, width, stride, stride), nn.GELU())
