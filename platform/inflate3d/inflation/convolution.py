"""FoldedConv: a 2D convolution on frames folded into the batch, with a kernel and a stride along D.

Legend: B clips, D frames, n what else is folded into the batch (heads, windows), N = B*D*n, C channels, H W space.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflate3d.inflation.call import is_recorded
from inflate3d.inflation.depthwise import convolve_depthwise, has_costly_weight_gradient, sum_of_taps
from inflate3d.inflation.layers import (
    FoldedLayer,
    frame_index,
    is_eager_on_cpu,
    is_free,
    pick_frames,
    replicate_ends,
    select_frames,
    trim_depth,
)
from inflate3d.inflation.minimal_filtering import TAPS as FILTER_TAPS
from inflate3d.inflation.minimal_filtering import convolve_filtered
from inflate3d.inflation.mixing import Mixin, base_name, mix
from inflate3d.inflation.small_maps import convolve_small
from inflate3d.inflation.taps import center_of

# Where one way of convolving overtakes another on a CPU (docs/LOG.md); positions: of the answer, over the batch.
SMALL_MAPS = 128
LONG_KERNEL = 2048
FILTER_POSITIONS = 256
POINTWISE_POSITIONS, POINTWISE_CHANNELS = 1024, 256


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

    def _pad_space(self, x: Tensor) -> tuple[Tensor, Any]:
        if self.same_pad:
            from timm.layers import pad_same

            return pad_same(x, self.kernel_size, self.stride, self.dilation), (0, 0)  # type: ignore[attr-defined]
        return x, self.padding  # type: ignore[attr-defined]

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

    def _convolve(self, x: Tensor, weight: Tensor, padding: Any) -> Tensor:
        frames = self.frames_of(x)
        if is_eager_on_cpu(x) and frames == 1 < weight.shape[2]:
            weight = _SummedTaps.apply(weight).unsqueeze(2)
        weight = trim_depth(weight, frames)
        if self.stride == (1, 1) and not isinstance(padding, str) and not torch.jit.is_tracing():  # type: ignore[attr-defined]
            weight, padding = trim_space(weight, padding, self.dilation, x.shape[-2:])  # type: ignore[attr-defined]
        options = (self.stride, padding, self.dilation, self.groups)  # type: ignore[attr-defined]
        is_dense = self.groups == 1 and not isinstance(padding, str)  # type: ignore[attr-defined]
        if is_dense and is_eager_on_cpu(x):
            return self._convolve_fast(x, weight, frames, padding)
        if weight.shape[2] == 1:
            x = pick_frames(x, frames, self.depth_stride)
            return F.conv2d(x, weight[:, :, 0], self.bias, *options)  # type: ignore[attr-defined]
        return self._conv3d(x, weight, frames, padding) if is_dense else self._sum_of_2d(x, weight, frames, options)

    def _convolve_fast(self, x: Tensor, weight: Tensor, frames: int, padding: tuple[int, int]) -> Tensor:
        """A dense convolution in the cheapest of the ways that give the same; measured in docs/LOG.md."""
        stride, dilation, bias = self.stride, self.dilation, self.bias  # type: ignore[attr-defined]
        depth = weight.shape[2]
        positions = x.shape[0] * x.shape[2] * x.shape[3] // math.prod((self.depth_stride, *stride))
        if positions <= SMALL_MAPS and weight[0].numel() >= LONG_KERNEL:
            y = convolve_small(x, weight, frames, (self.depth_stride, *stride), padding, dilation)
        elif depth == 1:
            return F.conv2d(pick_frames(x, frames, self.depth_stride), weight[:, :, 0], bias, stride, padding, dilation)
        elif depth == FILTER_TAPS and self.depth_stride == 1 == max(stride) and positions >= FILTER_POSITIONS:
            y = convolve_filtered(x, weight, frames, padding, dilation)
        elif frames == x.shape[0] and max(weight.shape[-2:]) <= 3:
            return self._channels_as_time(x, weight, frames, padding)  # torch's conv3d is slow on a single clip there
        else:
            return self._conv3d(x, weight, frames, padding)
        return y if bias is None else y + bias.view(-1, 1, 1)

    def _channels_as_time(self, x: Tensor, weight: Tensor, frames: int, padding: tuple[int, int]) -> Tensor:
        """One 2D convolution of frames that hold, in their channels, all that the kernel sees of their neighbours."""
        x_BDHWC = x.permute(0, 2, 3, 1).unflatten(0, (-1, frames))
        taps = range(weight.shape[2])
        seen = [frame_index(frames, len(taps), self.depth_stride, tap, x.device) for tap in taps]
        x_BDHWK = torch.cat([x_BDHWC.index_select(1, index) for index in seen], -1)
        return F.conv2d(
            x_BDHWK.flatten(0, 1).permute(0, 3, 1, 2),
            weight.transpose(1, 2).flatten(1, 2),
            self.bias,  # type: ignore[attr-defined]
            self.stride,  # type: ignore[attr-defined]
            padding,
            self.dilation,  # type: ignore[attr-defined]
        )

    def _sum_of_2d(self, x: Tensor, weight: Tensor, frames: int, options: tuple[Any, ...]) -> Tensor:
        """One 2D convolution a slice; several times faster than conv3d where channels do not mix (depthwise)."""
        kernel, stride = weight.shape[2], self.depth_stride
        if stride == 1 and has_costly_weight_gradient(weight, x, options) and is_eager_on_cpu(x):
            return convolve_depthwise(x, weight, frames, self.bias)  # type: ignore[attr-defined]
        if stride == 1 and (torch.compiler.is_compiling() or not is_recorded()):
            taps = [F.conv2d(x, weight[:, :, tap], None, *options) for tap in range(kernel)]
            return sum_of_taps(taps, frames, self.bias)  # type: ignore[attr-defined]
        total: Tensor | None = None
        for tap in range(kernel):
            picked = select_frames(x, frames, frame_index(frames, kernel, stride, tap, x.device))
            bias = self.bias if tap == 0 else None  # type: ignore[attr-defined]
            part = F.conv2d(picked, weight[:, :, tap], bias, *options)
            total = part if total is None else total + part
        assert total is not None
        return total

    def _conv3d(self, x: Tensor, weight: Tensor, frames: int, padding: tuple[int, int]) -> Tensor:
        before, after = depth_padding(frames, weight.shape[2], self.depth_stride)
        x_BDHWC = x.permute(0, 2, 3, 1).unflatten(0, (-1, frames))
        y_BODHW = F.conv3d(
            replicate_ends(x_BDHWC, 1, before, after).permute(0, 4, 1, 2, 3),
            weight,
            self.bias,  # type: ignore[attr-defined]
            (self.depth_stride, *self.stride),  # type: ignore[attr-defined]
            (0, *padding),
            (1, *self.dilation),  # type: ignore[attr-defined]
        )
        return y_BODHW.transpose(1, 2).flatten(0, 1)


class _SummedTaps(torch.autograd.Function):
    """The sum over the slices of a kernel, (O, I, kD, kH, kW) -> (O, I, kH, kW); nothing is written twice."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.depth = weight.shape[2]
        total = weight[:, :, 0] + weight[:, :, 1]
        for tap in range(2, ctx.depth):
            total += weight[:, :, tap]
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].unsqueeze(2).expand(-1, -1, ctx.depth, -1, -1)


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
    weight: Tensor, padding: tuple[int, int], dilation: tuple[int, int], size: torch.Size
) -> tuple[Tensor, tuple[int, int]]:
    """Return the kernel and padding (stride 1) without the rows and columns that only ever see zeros.

    Exact; libraries run kernels that are larger than the map many times slower.
    """
    trimmed = [
        max(0, (kernel - 1) // 2 - (n - 1) // step) if 2 * pad == step * (kernel - 1) else 0
        for kernel, pad, step, n in zip(weight.shape[-2:], padding, dilation, size, strict=True)
    ]
    height, width = trimmed
    if height:
        weight = weight[..., height:-height, :]
    if width:
        weight = weight[..., width:-width]
    return weight, (padding[0] - height * dilation[0], padding[1] - width * dilation[1])


def depth_padding(frames: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return how many frames are replicated before and after, so that the output has ceil(frames / stride)."""
    before = center_of(kernel)
    if is_free(frames):
        return before, kernel - 1 - before  # what no output frame reaches is not read
    out = -(-frames // stride)
    return before, max((out - 1) * stride + kernel - frames - before, 0)


_STANDARDISED = "StdConv2d"  # timm's StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame


def _pads_same(layer: Any) -> bool:
    """Whether timm's layer pads dynamically as TensorFlow's SAME does."""
    return bool(getattr(layer, "same_pad", base_name(layer).startswith("Conv2dSame")))


def has_known_forward(conv: nn.Conv2d) -> bool:
    """Whether a Conv2d's arithmetic is one that FoldedConv knows: torch's own, or timm's SAME and standardised ones."""
    own = type(conv).forward is nn.Conv2d.forward
    return own or base_name(conv).startswith("Conv2dSame") or _STANDARDISED in base_name(conv)
