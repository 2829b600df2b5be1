"""FoldedConv: a 2D convolution on frames folded into the batch, with a kernel and a stride along D.

Legend: B clips, D frames, n what else is folded into the batch (heads, windows), N = B*D*n, C channels, H W space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflate3d.inflation.depthwise import convolve_by_taps, convolve_by_taps_plainly, convolve_depthwise
from inflate3d.inflation.ends import blind_ends, trim_depth
from inflate3d.inflation.layers import FoldedLayer, pick_frames
from inflate3d.inflation.minimal_filtering import convolve_filtered
from inflate3d.inflation.mixing import Mixin, base_name, mix
from inflate3d.inflation.replicated import (
    Sizes,
    convolve_copied,
    convolve_edges,
    convolve_in_channels,
    convolve_plainly,
    convolve_summed,
)
from inflate3d.inflation.small_maps import convolve_small
from inflate3d.inflation.ways import (
    POINTWISE_CHANNELS,
    POINTWISE_POSITIONS,
    Way,
    is_eager_on_cpu,
    is_on_gpu,
    is_trimmed,
    way_of,
)


class FoldedConv(FoldedLayer):
    """A Conv2d whose weight is (O, I/groups, kD, kH, kW); D is padded by replication, H and W as the 2D layer does."""

    def prepare(self) -> None:
        """Read how the 2D layer pads and whether it standardises its weight."""
        self.same_pad = _pads_same(self)
        self.tube = False
        self.standardises = _STANDARDISED in base_name(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Shapes: (N, C, H, W) -> (N', O, H', W'), where D' = ceil(D / depth_stride)."""
        x_NCHW, padding = self._pad_space(x_NCHW)
        weight = self._standardised_weight()
        if self.tube:
            # The net's input came as tubes: the frames of one tube stand in the channels, so this is a 2D convolution.
            weight = weight.transpose(1, 2).flatten(1, 2)
            return F.conv2d(x_NCHW, weight, self.bias, self.stride, padding, self.dilation)  # type: ignore[attr-defined]
        return self._convolve(x_NCHW, weight, padding)

    def _pad_space(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        if self.same_pad:
            from timm.layers import pad_same

            return pad_same(x, self.kernel_size, self.stride, self.dilation), (0, 0)  # type: ignore[attr-defined]
        padding: Any = self.padding  # type: ignore[attr-defined]
        if not isinstance(padding, str):
            return x, padding
        left, right, top, bottom = self._reversed_padding_repeated_twice  # type: ignore[attr-defined]
        return (x, (top, left)) if (left, top) == (right, bottom) else (F.pad(x, (left, right, top, bottom)), (0, 0))

    def _standardised_weight(self) -> Tensor:
        weight: Tensor = self.weight  # type: ignore[attr-defined, assignment]
        if not self.standardises:
            return weight
        # The 2D statistics are those of the temporal SUM; what is subtracted is spread evenly over the slices.
        summed = weight.sum(2).flatten(1)
        variance, mean = torch.var_mean(summed, dim=1, correction=0)
        gain = (variance + self.eps).rsqrt()  # type: ignore[attr-defined]
        if hasattr(self, "gain"):
            gain = gain * (self.gain * self.scale).flatten()  # type: ignore[attr-defined]
        shape = (-1, 1, 1, 1, 1)
        return (weight - (mean / self.depth_kernel).view(shape)) * gain.view(shape)

    def _convolve(self, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        frames = self.frames_of(x)
        if self.stride == (1, 1) and not torch.jit.is_tracing():  # type: ignore[attr-defined]
            least = 2 if is_on_gpu(x) else 1  # there the slices are copied, so it pays where they are half as large
            weight, padding = trim_space(weight, padding, self.dilation, x.shape[-2:], least)  # type: ignore
        sizes = Sizes(frames, self.depth_stride, self.stride, padding, self.dilation, self.groups)  # type: ignore
        if is_trimmed(x, weight, sizes):
            sizes = sizes._replace(trim=blind_ends(weight.shape[2], frames))
        if not (is_eager_on_cpu(x) or is_on_gpu(x)):
            weight, sizes = trim_depth(weight, sizes.trim), sizes._replace(trim=(0, 0))
        return _CONVOLVE[way_of(x, weight, sizes)](x, weight, self.bias, sizes)  # type: ignore[attr-defined]


def _convolve_plane(x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sizes) -> Tensor:
    return F.conv2d(pick_frames(x, sizes.frames, sizes.depth_stride), weight.squeeze(2), bias, *sizes.in_2d)


def _convolve_recorded(x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sizes) -> Tensor:
    if sizes.groups == 1:
        return convolve_plainly(x, weight, bias, *sizes)
    return convolve_by_taps_plainly(x, weight, bias, *sizes)


_CONVOLVE: dict[Way, Callable[[Tensor, Tensor, Tensor | None, Sizes], Tensor]] = {
    Way.PLANE: _convolve_plane,
    Way.SMALL: convolve_small,
    Way.FILTERED: convolve_filtered,
    Way.IN_CHANNELS: convolve_in_channels,
    Way.SUMMED: convolve_summed,
    Way.COPIED: convolve_copied,
    Way.EDGES: convolve_edges,
    Way.TAPS: convolve_by_taps,
    Way.DEPTHWISE: convolve_depthwise,
    Way.RECORDED: _convolve_recorded,
}


class FoldedPointwise(Mixin):
    """An unstrided 1x1 convolution; where maps are small a matrix product does it several times faster on a CPU."""

    prefix = "Folded"

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Shapes: (N, C, H, W) -> (N, O, H, W)."""
        positions = x_NCHW.shape[0] * x_NCHW.shape[2] * x_NCHW.shape[3]
        if not is_eager_on_cpu(x_NCHW) or (positions > POINTWISE_POSITIONS and x_NCHW.shape[1] < POINTWISE_CHANNELS):
            return super().forward(x_NCHW)  # type: ignore[misc, no-any-return]
        return F.linear(x_NCHW.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)  # type: ignore


def fold_pointwise(net: nn.Module) -> None:
    """Let every plain 1x1 convolution of a net choose how it computes; what it computes stays."""
    for module in net.modules():
        is_pointwise = type(module) is nn.Conv2d and module.groups == max(module.kernel_size) == max(module.stride) == 1
        if is_pointwise and module.padding == (0, 0):
            mix(module, FoldedPointwise)


def trim_space(
    weight: Tensor, padding: tuple[int, int], dilation: tuple[int, int], size: torch.Size, least: float = 1
) -> tuple[Tensor, tuple[int, int]]:
    """Return the kernel and padding (stride 1) without the rows and columns that only ever see zeros.

    Exact; libraries run kernels that are larger than the map many times slower. least: how many times smaller an axis
    of the kernel must become; else it stays.
    """
    trimmed = [
        max(0, (kernel - 1) // 2 - (n - 1) // step) if 2 * pad == step * (kernel - 1) else 0
        for kernel, pad, step, n in zip(weight.shape[-2:], padding, dilation, size, strict=True)
    ]
    kept = zip(trimmed, weight.shape[-2:], strict=True)
    height, width = (cut if least * (kernel - 2 * cut) <= kernel else 0 for cut, kernel in kept)
    if height:
        weight = weight[..., height:-height, :]
    if width:
        weight = weight[..., width:-width]
    return weight, (padding[0] - height * dilation[0], padding[1] - width * dilation[1])


_STANDARDISED = "StdConv2d"  # timm's StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame


def _pads_same(layer: Any) -> bool:
    """Whether timm's layer pads dynamically as TensorFlow's SAME does."""
    return bool(getattr(layer, "same_pad", base_name(layer).startswith("Conv2dSame")))


def has_known_forward(conv: nn.Conv2d) -> bool:
    """Whether a Conv2d's arithmetic is one that FoldedConv knows: torch's own, or timm's SAME and standardised ones."""
    own = type(conv).forward is nn.Conv2d.forward
    return own or base_name(conv).startswith("Conv2dSame") or _STANDARDISED in base_name(conv)
