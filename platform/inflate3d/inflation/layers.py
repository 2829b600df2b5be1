"""Folded layers: 2D layers on frames folded into the batch, (B, C, D, H, W) -> (B*D, C, H, W), that look across frames.

Legend: B clips, D frames, n what else is folded into the batch (heads, windows), N = B*D*n, C channels, H W space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflate3d.errors import InputError
from inflate3d.inflation.call import is_transformed, telling, told
from inflate3d.inflation.ends import blind_ends, is_free, seen_by_taps, trim_depth
from inflate3d.inflation.mixing import Mixin, base_name, mix, parts_of
from inflate3d.inflation.ways import is_eager_on_cpu, is_on_gpu

RGB = 3


class Clip(NamedTuple):
    """How many clips the batch of a forward holds, and of how many frames each came to the net's first layer."""

    batch_size: int
    frames: int

    @property
    def is_empty(self) -> bool:
        """Whether the batch holds no clip at all (a size that is recorded is never 0)."""
        return isinstance(self.batch_size, int) and self.batch_size == 0


def folding(batch_size: int, frames: int = 1) -> telling:
    """Tell folded layers that run inside how the rows of their inputs belong to clips; a net's own methods do it.

    For parts of a net that are called alone: `with folding(batch_size=2): net.layer1(x)`, x (2*D, C, H, W).
    """
    return telling("clip", Clip(batch_size, frames))


def clip_told(by: str) -> Clip:
    """Return the clip of the forward that runs here; InputError, which names the layer `by`, outside of any."""
    clip: Clip | None = told("clip")
    if clip is None:
        raise InputError(
            f"{by} ran outside of its net's forward, so nobody told it which rows of its input are one clip. Call the "
            "net (or its forward_features, forward_intermediates); a part alone: with "
            "inflate3d.inflation.folding(batch_size): ...; to checkpoint: net.set_grad_checkpointing(), or "
            "torch.utils.checkpoint around the whole net"
        )
    return clip


class FoldedLayer(Mixin):
    """A 2D layer that knows the frames of its clip."""

    prefix = "Folded"
    depth_kernel: int = 1
    depth_stride: int = 1

    def clip(self) -> Clip:
        """The clip of the forward that runs here."""
        return clip_told(base_name(self))

    def prepare(self) -> None:
        """Read what the folded form must know of the 2D layer; called once, after mixing."""

    def frames_of(self, x: Tensor) -> int:
        """Return D, the frames a clip has at this layer: N / B; 1 for an empty batch, where nothing hangs on it."""
        clip = self.clip()
        return 1 if clip.is_empty else x.shape[0] // clip.batch_size

    def extra_repr(self) -> str:
        """Return the 2D layer's own line with what was added along D."""
        return f"{super().extra_repr()}, depth_kernel={self.depth_kernel}, depth_stride={self.depth_stride}"  # type: ignore[misc]


class FoldedPool(FoldedLayer):
    """A spatial pool that also pools over frames: max and average windows are separable, so one follows the other.

    Any other layer that shrinks H and W is treated as an average over `depth_kernel` frames.
    """

    def prepare(self) -> None:
        """See whether the 2D layer is torch's own max pool."""
        self.is_plain_max = parts_of(type(self))[-1].forward is nn.MaxPool2d.forward  # type: ignore[attr-defined]

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Shapes: (N, C, H, W) -> (N', C, H', W'), where D' = ceil(D / depth_stride)."""
        frames = self.frames_of(x_NCHW)
        if self.depth_kernel == 1:
            return super().forward(pick_frames(x_NCHW, frames, self.depth_stride))  # type: ignore[misc]
        if self.depth_kernel % 2 and self.is_plain_max and (is_eager_on_cpu(x_NCHW) or is_on_gpu(x_NCHW)):
            return self._max_pool3d(x_NCHW, frames)
        y = super().forward(x_NCHW)  # type: ignore[misc]
        total, *others = seen_by_taps(y.permute(0, 2, 3, 1), frames, self.depth_kernel, self.depth_stride)
        is_max = isinstance(self, nn.MaxPool2d)
        for part in others:
            total = torch.maximum(total, part) if is_max else total + part
        total = total.flatten(0, 1).permute(0, 3, 1, 2)
        return total if is_max else total / self.depth_kernel

    def _max_pool3d(self, x: Tensor, frames: int) -> Tensor:
        """Pool in one pass: a window that reaches past an end holds that end's frame already, so padding is exact."""
        size = [_pair(v) for v in (self.kernel_size, self.stride, self.padding, self.dilation)]  # type: ignore[attr-defined]
        along_d = (self.depth_kernel, self.depth_stride, self.depth_kernel // 2, 1)
        options = [(d, *hw) for d, hw in zip(along_d, size, strict=True)]
        x_BCDHW = x.unflatten(0, (-1, frames)).transpose(1, 2)
        y: Tensor = F.max_pool3d(x_BCDHW, *options, ceil_mode=self.ceil_mode)  # type: ignore
        kept = -(-frames // self.depth_stride)
        return (y if y.shape[2] == kept else y[:, :, :kept]).transpose(1, 2).flatten(0, 1)


class FoldedLinear(FoldedLayer):
    """A Linear (or pointwise layer on tokens) whose weight is (O, I, kD): tokens look at their neighbours in time."""

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (N, ..., I) -> (N, ..., O); D is padded by replication."""
        frames, weight = self.frames_of(x), self.weight  # type: ignore[attr-defined]
        weight = trim_depth(weight, blind_ends(weight.shape[2], frames))
        kernel = weight.shape[2]
        if kernel > 1:
            x = torch.cat(seen_by_taps(x, frames, kernel, 1), -1).flatten(0, 1)
        return F.linear(x, weight.transpose(1, 2).flatten(1), self.bias)  # type: ignore[attr-defined]


class FoldedDropPath(FoldedLayer):
    """Stochastic depth that drops whole clips, not single frames (the clip is the sample)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape with N first; the same draw for every frame of a clip."""
        drop_prob: float = self.drop_prob or 0.0  # type: ignore[attr-defined]
        if drop_prob == 0.0 or not self.training:  # type: ignore[attr-defined]
            return x
        keep = x.new_empty(self.clip().batch_size, *(1,) * x.ndim).bernoulli_(1 - drop_prob)
        if getattr(self, "scale_by_keep", True) and drop_prob < 1:
            keep.div_(1 - drop_prob)
        return (x.unflatten(0, (-1, self.frames_of(x))) * keep).flatten(0, 1)


class ClipStatistics(FoldedLayer):
    """A layer with statistics over H and W (GroupNorm, GRN, squeeze-excite...): here they are the clip's.

    The 2D layer runs unchanged on frames laid below each other, (B, C, D*H, W); a view where memory is channels-last.
    """

    prefix = "Clip"
    channels_last: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (N, C, H, W), or (N, H, W, C) where `channels_last` -> the same."""
        frames = self.frames_of(x)
        x = x.unflatten(0, (-1, frames))
        if self.channels_last:
            return self._pool(x.flatten(1, 2), frames).unflatten(1, (frames, -1)).flatten(0, 1)
        y = self._pool(x.transpose(1, 2).flatten(2, 3), frames)
        return y.unflatten(2, (frames, -1)).transpose(1, 2).flatten(0, 1)

    def _pool(self, x: Tensor, frames: int) -> Tensor:
        """The 2D layer's own forward on (B, C, D*H, W) or (B, D*H, W, C)."""
        return super().forward(x)  # type: ignore[misc, no-any-return]


class ClipResponseNorm(ClipStatistics):
    """Global response normalisation (arXiv:2301.00808) whose L2 norms are the clip's: timm's formula, eps beside."""

    def _pool(self, x: Tensor, frames: int) -> Tensor:
        """The norm of D equal frames is sqrt(D) times that of one, so eps grows with it."""
        norm = x.norm(p=2, dim=self.spatial_dim, keepdim=True)  # type: ignore[attr-defined, no-untyped-call]
        norm = norm / (norm.mean(dim=self.channel_dim, keepdim=True) + self.eps * frames**0.5)  # type: ignore
        weight, bias = (p.view(self.wb_shape) for p in (self.weight, self.bias))  # type: ignore[attr-defined]
        return x + torch.addcmul(bias, weight, x * norm)


class ClipSqueeze(FoldedLayer):
    """A pointwise layer on what was squeezed out of each frame: it is given the mean over the frames of the clip."""

    prefix = "ClipSqueeze"

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (N, C) or (N, C, 1, 1), the same for every frame of a clip on the way out."""
        x = x.unflatten(0, (-1, self.frames_of(x)))
        y = super().forward(x.mean(1))  # type: ignore[misc]
        return y.unsqueeze(1).expand(-1, x.shape[1], *[-1] * (y.ndim - 1)).flatten(0, 1)


class FrameStride(FoldedLayer):
    """A module that shrinks space in its own way; what it gives is averaged over `depth_stride` frames."""

    prefix = "Strided"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Any tensors in, N first; every tensor that follows them comes out with D' = ceil(D / depth_stride)."""
        first = first_tensor((args, kwargs))
        rows, frames = first.shape[0], self.frames_of(first)
        output = super().forward(*args, **kwargs)  # type: ignore[misc]
        return output if self.clip().is_empty else map_tensors(output, lambda y: self._stride(y, rows, frames))

    def _stride(self, y: Tensor, rows: int, frames: int) -> Tensor:
        if y.ndim < 2 or y.shape[0] % rows:
            return y
        if not y.is_floating_point():  # places and masks of tokens: those of the first frame
            return y.unflatten(0, (-1, frames, y.shape[0] // rows))[:, :: self.depth_stride].flatten(0, 2)
        y = y.unflatten(0, (-1, frames, y.shape[0] // rows))
        missing = -frames % self.depth_stride
        if is_free(frames) or missing:
            y = torch.cat([y, y[:, -1:].expand(-1, missing, *[-1] * (y.ndim - 2))], 1)
        return y.unflatten(1, (-1, self.depth_stride)).mean(2).flatten(0, 2)


class AtRate(FoldedLayer):
    """A module inside a net that counts its batch once, at its start, so that rows must stay as many from then on.

    It runs on every `rate_in`-th frame only, and each frame that it gives is held for `hold` frames.
    """

    prefix = "AtRate"
    rate_in: int = 1
    hold: int = 1

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Any tensors in and out, with B * D rows (times n), D the frames that the net was given."""
        if self.rate_in > 1:
            args, kwargs = map_tensors((args, kwargs), self._pick)
        output = super().forward(*args, **kwargs)  # type: ignore[misc]
        return map_tensors(output, self._hold) if self.hold > 1 else output

    def _pick(self, x: Tensor) -> Tensor:
        clips, frames = self.clip()
        if x.ndim < 2 or self.clip().is_empty or x.shape[0] % (clips * frames):
            return x
        return x.unflatten(0, (clips, frames, -1))[:, :: self.rate_in].flatten(0, 2)

    def _hold(self, y: Tensor) -> Tensor:
        clips, frames = self.clip()
        kept = -(-frames // self.hold)
        if y.ndim < 2 or self.clip().is_empty or y.shape[0] % (clips * kept):
            return y
        y = y.unflatten(0, (clips, kept, -1)).repeat_interleave(self.hold, 1)
        return y[:, :frames].flatten(0, 2)


def fold_layer(layer: nn.Module, mixin: type[FoldedLayer], kernel: int = 1, stride: int = 1) -> None:
    """Turn a 2D layer into its folded form in place."""
    layer.depth_kernel, layer.depth_stride = kernel, stride  # type: ignore[assignment]
    mix(layer, mixin)
    layer.prepare()  # type: ignore[operator]


def pick_frames(x: Tensor, frames: int, stride: int) -> Tensor:
    """Return every `stride`-th frame of every clip; x itself if the stride is 1."""
    if stride == 1:
        return x
    return _keep_layout(x, lambda rows: rows.unflatten(0, (-1, frames))[:, ::stride].flatten(0, 1))


def fold_into_tubes(x_BCDHW: Tensor, tube: int) -> Tensor:
    """Fold clips into frames: (B, C, D, H, W) -> (B*D', tube*C, H, W), D' = ceil(D / tube), the last frame replicated.

    A view for one-frame tubes of channels-last clips, one copy otherwise. The frames come out channels-last: depthwise
    convolutions over small maps run several times faster so on CPU, and dense ones on GPU.
    """
    if not is_transformed():  # vmap knows no layouts
        x_BCDHW = x_BCDHW.contiguous(memory_format=torch.channels_last_3d)
    missing = -x_BCDHW.shape[2] % tube
    if tube > 1 and (is_free(x_BCDHW.shape[2]) or missing):
        x_BCDHW = torch.cat([x_BCDHW, x_BCDHW[:, :, -1:].expand(-1, -1, missing, -1, -1)], 2)
    x_BDCHW = x_BCDHW.transpose(1, 2)
    return x_BDCHW.flatten(0, 1) if tube == 1 else x_BDCHW.unflatten(1, (-1, tube)).flatten(0, 1).flatten(1, 2)


def as_rgb(x_BCDHW: Tensor) -> Tensor:
    """Bring any channels to three, as timm adapts the weights of an RGB stem: (B, C, D, H, W) -> (B, 3, D, H, W).

    One channel is repeated; of more, every third is summed, scaled by 3 / C.
    """
    channels = x_BCDHW.shape[1]
    if channels == 1:
        return x_BCDHW.expand(-1, RGB, -1, -1, -1)
    x_BCDHW = F.pad(x_BCDHW, (0, 0, 0, 0, 0, 0, 0, -channels % RGB))
    return x_BCDHW.unflatten(1, (-1, RGB)).sum(1) * (RGB / channels)


def _keep_layout(x: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
    """Choose frames of maps so that what is copied stays channels-last; a graph need not be told."""
    if x.ndim != 4 or torch.compiler.is_compiling():
        return choose(x)
    return choose(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)  # type: ignore[return-value]


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply a function to a tensor, or to each tensor of a list, tuple or dict of them."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {k: map_tensors(v, function) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(v, function) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(v, function) for v in value)
    return value


def first_tensor(value: Any) -> Tensor:
    """Return the first tensor of nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return value
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, Tensor) or (isinstance(item, list | tuple | dict) and item):  # len(tensor) would fix N
            return first_tensor(item)
    raise TypeError("no tensor given")
