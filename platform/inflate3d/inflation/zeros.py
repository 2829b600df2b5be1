"""Zeros past a clip's ends, as 3D nets from elsewhere have them: the plain way, by torch's own 3D operations.

Legend: B clips, D frames, N = B*D, C channels, H W space.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflate3d.inflation.convolution import FoldedConv
from inflate3d.inflation.ends import depth_padding
from inflate3d.inflation.layers import FoldedLinear, FoldedPool
from inflate3d.inflation.mixing import Mixin, mix, parts_of


def pad_with_zeros(net: nn.Module, *, same: bool) -> None:
    """Let every layer of an inflated net that reaches along D find zeros past the ends, where frames were repeated.

    same: shared between both ends as TensorFlow's SAME does, the larger half after the last frame; otherwise the first
    window's center lies on the first frame. They differ in layers that stride.
    Max pools find nothing there, as torch's own do. Whatever averages the frames of a stride, and a patch embed's last
    tube, is completed by the last frame all the same.
    """
    modules: list[Any] = list(net.modules())
    for module in modules:
        mixin = next((mixin for folded, mixin in _MIXINS.items() if isinstance(module, folded)), None)
        if mixin is not None and module.depth_kernel > 1 and not getattr(module, "tube", False):
            module.shares_zeros = same
            mix(module, mixin)


class ZeroPaddedConv(Mixin):
    """A FoldedConv as torch's conv3d pads it."""

    prefix = "ZeroPadded"

    def _convolve(self: Any, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        y_BODHW = F.conv3d(
            _padded(x, self, value=0).transpose(1, 2),
            weight,
            self.bias,
            (self.depth_stride, *self.stride),
            (0, *padding),
            (1, *self.dilation),
            self.groups,
        )
        return y_BODHW.transpose(1, 2).flatten(0, 1)


class ZeroPaddedPool(Mixin):
    """A FoldedPool as torch's max_pool3d and avg_pool3d pad it: its 2D pool, then windows over the frames."""

    prefix = "ZeroPadded"

    def forward(self: Any, x_NCHW: Tensor) -> Tensor:
        """Shapes: (N, C, H, W) -> (N', C, H', W'), where D' = ceil(D / depth_stride)."""
        y = parts_of(type(self))[-1].forward(self, x_NCHW)  # type: ignore[attr-defined]
        is_max = isinstance(self, nn.MaxPool2d)
        if is_max:
            return self._windows(y, value=-math.inf).amax(-1).flatten(0, 1)
        total = self._windows(y, value=0).sum(-1)
        if getattr(self, "count_include_pad", True):
            return (total / self.depth_kernel).flatten(0, 1)
        counted = self._windows(torch.ones_like(y[:, :1, :1, :1]), value=0).sum(-1)
        return (total / counted).flatten(0, 1)

    def _windows(self: Any, y: Tensor, *, value: float) -> Tensor:
        """(N, ...) -> (B, D', ..., kD)."""
        return _padded(y, self, value=value).unfold(1, self.depth_kernel, self.depth_stride)


class ZeroPaddedLinear(Mixin):
    """A FoldedLinear whose tokens find zeros past the ends."""

    prefix = "ZeroPadded"

    def forward(self: Any, x: Tensor) -> Tensor:
        """Shapes: (N, ..., I) -> (N, ..., O)."""
        windows = _padded(x, self, value=0).unfold(1, self.depth_kernel, 1)  # (B, D, ..., I, kD)
        return F.linear(windows.flatten(-2).flatten(0, 1), self.weight.flatten(1), self.bias)


_MIXINS: dict[type, type[Mixin]] = {
    FoldedConv: ZeroPaddedConv,
    FoldedPool: ZeroPaddedPool,
    FoldedLinear: ZeroPaddedLinear,
}


def _padded(x: Tensor, layer: Any, *, value: float) -> Tensor:
    """Unfold clips, and add past their ends what the layer's windows along D reach of it: (N, ...) -> (B, D+, ...)."""
    frames = layer.frames_of(x)
    before, after = depth_padding(frames, layer.depth_kernel, layer.depth_stride)
    if layer.shares_zeros:
        last = (-(-frames // layer.depth_stride) - 1) * layer.depth_stride
        missing = max(last + layer.depth_kernel - frames, 0)
        before, after = missing // 2, missing - missing // 2
    return F.pad(x.unflatten(0, (-1, frames)), (0, 0) * (x.ndim - 1) + (before, after), value=value)
