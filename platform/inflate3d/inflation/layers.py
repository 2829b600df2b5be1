"""Folded layers: 2D layers on frames folded into the batch, (B, C, D, H, W) -> (B*D, C, H, W), that look across frames.

Legend: B clips, D frames, n what else is folded into the batch (heads, windows), N = B*D*n, C channels, H W space.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inflate3d.inflation.mixing import Mixin, mix
from inflate3d.inflation.taps import center_of


class Clip:
    """What every folded layer of one net shares: how many clips the batch holds just now."""

    __slots__ = ("batch_size",)

    def __init__(self) -> None:
        self.batch_size = 1

    def __getstate__(self) -> int:
        return self.batch_size

    def __setstate__(self, state: int) -> None:
        self.batch_size = state


class FoldedLayer(Mixin):
    """A 2D layer that knows the frames of its clip."""

    prefix = "Folded"
    clip: Clip
    depth_kernel: int
    depth_stride: int
    fold_factor: int

    def prepare(self) -> None:
        """Read what the folded form must know of the 2D layer; called once, after mixing."""

    def frames_of(self, x: Tensor) -> int:
        """Return D, the frames a clip has at this layer: N / (B * n)."""
        return x.shape[0] // (self.clip.batch_size * self.fold_factor)

    def extra_repr(self) -> str:
        """Return the 2D layer's own line with what was added along D."""
        return f"{super().extra_repr()}, depth_kernel={self.depth_kernel}, depth_stride={self.depth_stride}"  # type: ignore[misc]


class FoldedPool(FoldedLayer):
    """A spatial pool that also pools over frames: max and average windows are separable, so one follows the other.

    Any other layer that shrinks H and W is treated as an average over `depth_kernel` frames.
    """

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Shapes: (N, C, H, W) -> (N', C, H', W'), where D' = ceil(D / depth_stride)."""
        frames = self.frames_of(x_NCHW)
        y = super().forward(x_NCHW)  # type: ignore[misc]
        if self.depth_kernel == 1:
            return pick_frames(y, frames, self.fold_factor, self.depth_stride)
        is_max = isinstance(self, nn.MaxPool2d)
        total: Tensor | None = None
        for tap in range(self.depth_kernel):
            index = frame_index(frames, self.depth_kernel, self.depth_stride, tap, y.device)
            part = select_frames(y, frames, self.fold_factor, index)
            total = part if total is None else torch.maximum(total, part) if is_max else total + part
        assert total is not None
        return total if is_max else total / self.depth_kernel


class FoldedDropPath(FoldedLayer):
    """Stochastic depth that drops whole clips, not single frames (the clip is the sample)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape with N first; the same draw for every frame of a clip."""
        drop_prob: float = self.drop_prob or 0.0  # type: ignore[attr-defined]
        if drop_prob == 0.0 or not self.training:  # type: ignore[attr-defined]
            return x
        clips = self.clip.batch_size
        keep = x.new_empty(clips, *(1,) * x.ndim).bernoulli_(1 - drop_prob)
        if getattr(self, "scale_by_keep", True) and drop_prob < 1:
            keep.div_(1 - drop_prob)
        return (x.unflatten(0, (clips, -1)) * keep).flatten(0, 1)


def pick_frames(x: Tensor, frames: int, fold_factor: int, stride: int) -> Tensor:
    """Return every `stride`-th frame of every clip; x itself if the stride is 1."""
    if stride == 1:
        return x
    return x.unflatten(0, (-1, frames, fold_factor))[:, ::stride].flatten(0, 2)


def fold_into_tubes(x_BCDHW: Tensor, tube: int) -> Tensor:
    """Fold clips into frames: (B, C, D, H, W) -> (B*D', tube*C, H, W), D' = ceil(D / tube), the last frame replicated.

    A view for one-frame tubes of channels-last clips, one copy otherwise. The frames come out channels-last: depthwise
    convolutions over small maps run several times faster so on CPU, and dense ones on GPU.
    """
    x_BCDHW = x_BCDHW.contiguous(memory_format=torch.channels_last_3d)
    missing = -x_BCDHW.shape[2] % tube
    if missing:
        x_BCDHW = torch.cat([x_BCDHW, x_BCDHW[:, :, -1:].expand(-1, -1, missing, -1, -1)], 2)
    x_BDCHW = x_BCDHW.transpose(1, 2)
    return x_BDCHW.flatten(0, 1) if tube == 1 else x_BDCHW.unflatten(1, (-1, tube)).flatten(0, 1).flatten(1, 2)


def fold_layer(layer: nn.Module, mixin: type[FoldedLayer], clip: Clip, kernel: int, stride: int, factor: int) -> None:
    """Turn a 2D layer into its folded form in place."""
    layer.clip, layer.depth_kernel, layer.depth_stride, layer.fold_factor = clip, kernel, stride, factor  # type: ignore[assignment]
    mix(layer, mixin)
    layer.prepare()  # type: ignore[operator]


def frame_index(frames: int, kernel: int, stride: int, tap: int, device: torch.device) -> Tensor:
    """Return, for each output frame, the input frame that a tap reads; the ends are replicated."""
    start = tap - center_of(kernel)
    return (torch.arange(0, frames, stride, device=device) + start).clamp_(0, frames - 1)


def select_frames(x: Tensor, frames: int, fold_factor: int, index: Tensor) -> Tensor:
    """Return the frames of every clip that `index` names, in its order."""
    return x.unflatten(0, (-1, frames, fold_factor)).index_select(1, index).flatten(0, 2)
