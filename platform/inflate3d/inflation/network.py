"""inflate(): a 2D net becomes one over (B, C, D, H, W); its own forward runs on frames folded into the batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inflate3d.errors import InputError
from inflate3d.inflation.convolution import FoldedConv, has_known_forward
from inflate3d.inflation.features import InflatedFeatureInfo
from inflate3d.inflation.layers import (
    Clip,
    FoldedDropPath,
    FoldedPool,
    fold_into_tubes,
    fold_layer,
)
from inflate3d.inflation.mixing import Mixin, mix
from inflate3d.inflation.plan import InflationPlan, as_triple, resolve_plan
from inflate3d.inflation.taps import Taps, inflate_kernel
from inflate3d.inflation.trace import LayerTrace, trace_levels
from inflate3d.inflation.verify import Answer, InflationError, check_static_clip, record_2d, tolerance
from inflate3d.sample import Triple


class Inflated(Mixin):
    """A 2D net whose methods take and give clips; its parameters keep their names.

    Shapes: forward (B, C, D, H, W) -> logits (B, K). forward_features -> (B, C', D', H', W'), or (B, D', ...) with the
    2D net's own rest where its maps are channels-last or tokens. features_only nets give a list of
    (B, C_l, D_l, H_l, W_l).
    """

    prefix = "Inflated"
    clip: Clip
    plan: InflationPlan
    taps: Taps
    tube: int
    head_over_time: str

    def forward(self, x_BCDHW: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Answer for a clip: (B, C, D, H, W) -> (B, K), or what the 2D net returns, frame by frame."""
        output = super().forward(self._fold(x_BCDHW), *args, **kwargs)  # type: ignore[misc]
        if isinstance(output, list):
            return [self._unfold_map(y, self._map_is_nhwc()) for y in output]
        return _map_tensors(
            output, lambda y: self._mean_over_time(self._unfold(y)) if y.ndim == 2 else self._unfold_map(y)
        )

    # ------------------------------------------------------------------------------------------------ folding

    def _fold(self, x_BCDHW: Tensor) -> Tensor:
        if x_BCDHW.ndim != 5:
            raise InputError(f"input has shape {tuple(x_BCDHW.shape)}; expected 5 axes (B, C, D, H, W)")
        batch, channels, depth, height, width = x_BCDHW.shape
        expected = getattr(self, "in_chans_expected", channels)
        if channels != expected:
            raise InputError(
                f"input has {channels} channels in shape {tuple(x_BCDHW.shape)} (B, C, D, H, W); the net takes "
                f"{expected}: build it with in_chans={channels}"
            )
        if depth < self.plan.min_depth:
            raise InputError(
                f"input has {depth} frames in shape {tuple(x_BCDHW.shape)} (B, C, D, H, W); plan {self.plan.name!r} "
                f"needs at least {self.plan.min_depth}: give longer clips, or plan='auto' with "
                f"input_size=({depth}, {height}, {width})"
            )
        self.clip.batch_size = batch
        return fold_into_tubes(x_BCDHW, self.tube)

    def _unfold(self, y: Tensor) -> Tensor:
        """(B*D', ...) -> (B, D', ...)."""
        return y.unflatten(0, (self.clip.batch_size, -1))

    def _unfold_map(self, y: Tensor, nhwc: bool = False) -> Tensor:
        """(B*D', C, H, W) -> (B, C, D', H, W); a channels-last map is brought to the same order."""
        y = self._unfold(y)
        return y.movedim(-1, 1) if nhwc else y.transpose(1, 2)

    def _unfold_features(self, y: Tensor) -> Tensor:
        return self._unfold_map(y) if y.ndim == 4 and not self.feature_is_nhwc else self._unfold(y)  # type: ignore[attr-defined]

    def _map_is_nhwc(self) -> bool:
        return "NHWC" in str(getattr(self, "output_fmt", "NCHW"))

    def _mean_over_time(self, y: Tensor, dim: int = 1) -> Tensor:
        return self._head_window(y, dim).mean(dim)

    def _head_window(self, y: Tensor, dim: int) -> Tensor:
        """I3D's last average pool: windows of `head_pool` frames, stride 1."""
        window = self.plan.head_pool
        return y if window is None or y.shape[dim] <= window else y.unfold(dim, window, 1).mean(-1)

    def _time_into_space(self, y: Tensor) -> Tensor:
        """Lay frames below each other, so that the head's own global pool (average, max, both) is the 3D one."""
        if y.ndim == 5 and not self.feature_is_nhwc:  # type: ignore[attr-defined]
            y = self._head_window(y, 2)
            return y.flatten(2, 3) if self.head_over_time == "space" else y.mean(2)
        y = self._head_window(y, 1)
        if y.ndim == 5 and self.head_over_time == "space":
            return y.flatten(1, 2)
        return y.mean(1)


class InflatedTimm(Inflated):
    """An inflated net with timm's forward_features, forward_head and forward_intermediates."""

    def forward(self, x_BCDHW: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Answer for a clip: (B, C, D, H, W) -> (B, K)."""
        return self.forward_head(self.forward_features(x_BCDHW, *args, **kwargs))

    def forward_features(self, x_BCDHW: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the net's last features, as timm's forward_features does, with D' after the batch or the channels."""
        output = super().forward_features(self._fold(x_BCDHW), *args, **kwargs)  # type: ignore[misc]
        return _map_tensors(output, self._unfold_features)

    def forward_head(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Pool over space and time and classify; time is averaged before whatever the head does after pooling."""
        return super().forward_head(_map_tensors(x, self._time_into_space), *args, **kwargs)  # type: ignore[misc]

    def forward_intermediates(self, x_BCDHW: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As timm's; NCHW maps come as (B, C, D', H', W'), all else as (B, D', ...)."""
        output = super().forward_intermediates(self._fold(x_BCDHW), *args, **kwargs)  # type: ignore[misc]
        as_map = kwargs.get("output_fmt", "NCHW") == "NCHW"

        def unfold(y: Tensor) -> Tensor:
            return self._unfold_map(y) if as_map and y.ndim == 4 else self._unfold(y)

        if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], list):
            return _map_tensors(output[0], self._unfold_features), [_map_tensors(y, unfold) for y in output[1]]
        return _map_tensors(output, unfold)


def inflate(
    module_2d: nn.Module,
    *,
    example_size: Sequence[int],
    inflation: str | Taps = "center",
    plan: str | InflationPlan | dict[str, Any] = "auto",
    overshoot: float = 0.25,
    spacing_mm: Sequence[float] | None = None,
    in_chans: int | None = None,
) -> nn.Module:
    """Return a copy of a 2D net that takes clips (B, C, D, H, W); `module_2d` itself is never changed.

    example_size: (D, H, W) of a usual input; H and W must suit the 2D net, D and `spacing_mm` steer plan="auto".
    The result is checked on a tiny static clip. Raises InflationError that names the layer which breaks the invariant.
    """
    size = as_triple(example_size, "example_size")
    resolved = resolve_plan(plan, input_size=size, spacing_mm=spacing_mm)
    taps = inflation if isinstance(inflation, Taps) else Taps(inflation, overshoot)  # type: ignore[arg-type]
    return inflate_in_place(copy.deepcopy(module_2d), trace_size=size[1:], taps=taps, plan=resolved, in_chans=in_chans)


def inflate_in_place(
    net: nn.Module,
    *,
    trace_size: tuple[int, int],
    taps: Taps,
    plan: InflationPlan,
    in_chans: int | None = None,
    verify: bool = True,
) -> nn.Module:
    """Inflate a net that nobody else holds; `trace_size` (H, W) is what the 2D forward is traced and checked on."""
    weight = next(net.parameters())
    channels = in_chans or first_in_chans(net)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, channels, *trace_size, generator=generator).to(weight.device, weight.dtype)
    traces = trace_levels(net, image)
    is_checkable = verify and taps.is_exact and not weight.is_meta
    check_image, outputs_2d = _record_small(net, image) if is_checkable else (image, {})
    layout = _trace_head(net, image)
    clip = Clip()
    strided_levels = _fold_layers(net, traces, plan, taps, clip)
    net.tube = _use_tubes(net, traces)  # type: ignore[assignment]
    net.clip, net.plan, net.taps, net.in_chans_expected = clip, plan, taps, channels  # type: ignore[assignment]
    net.feature_is_nhwc, net.head_over_time = layout  # type: ignore[assignment]
    if hasattr(net, "feature_info"):
        net.feature_info = InflatedFeatureInfo.of(net.feature_info, plan, strided_levels)  # type: ignore[assignment]
    mix(net, InflatedTimm if _has_timm_head(net) else Inflated)
    if is_checkable:
        # Past the total stride, so that a branch that misses its stride shows.
        depth = max(plan.min_depth, plan.total_stride + 1, 3)
        check_static_clip(net, check_image, outputs_2d, depth=depth, tol=tolerance(weight.dtype))
    return net


def _record_small(net: nn.Module, image: Tensor) -> tuple[Tensor, dict[str, list[Answer]]]:
    """Record the 2D answers on a quarter of the image, or on all of it where the net's size is fixed or too small."""
    quarter = image[..., : image.shape[-2] // 2, : image.shape[-1] // 2]
    try:
        return quarter, record_2d(net, quarter)
    except (RuntimeError, ValueError, AssertionError):
        return image, record_2d(net, image)


def first_in_chans(net: nn.Module) -> int:
    """Return the channels that the first convolution (or linear patch embed) takes."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels * 1
    raise InputError(f"{type(net).__name__} has no Conv2d; name its input channels with in_chans=")


def _fold_layers(
    net: nn.Module, traces: dict[str, LayerTrace], plan: InflationPlan, taps: Taps, clip: Clip
) -> frozenset[int]:
    """Fold every layer that the plan gives a kernel or a stride along D; return the levels whose stride was applied."""
    applied: set[int] = set()
    for name, module in net.named_modules():
        trace = traces.get(name)
        if type(module).__name__ == "DropPath":
            fold_layer(module, FoldedDropPath, clip, 1, 1, 1)
        elif trace is None or _is_global(module):
            continue
        elif isinstance(module, nn.Conv2d):
            kernel, stride = _extent(module, module.kernel_size, module.stride, trace, plan)
            if module.kernel_size == (1, 1) and stride == 1:
                continue
            if not has_known_forward(module):
                raise InflationError(
                    f"layer {name!r} is a {type(module).__name__}, a Conv2d with a forward of its own; inflation knows "
                    "torch's, and timm's SAME-padded and weight-standardised ones"
                )
            module.weight = nn.Parameter(
                inflate_kernel(module.weight.data, kernel, taps=taps), module.weight.requires_grad
            )
            fold_layer(module, FoldedConv, clip, kernel, stride, trace.fold_factor)
            applied.update(range(trace.level_in + 1, trace.level_out + 1) if stride > 1 else ())
        elif trace.level_out > trace.level_in or _is_pool(module):
            size = getattr(module, "kernel_size", 2 ** (trace.level_out - trace.level_in))
            kernel, stride = _extent(module, size, getattr(module, "stride", 1), trace, plan)
            if kernel > 1 or stride > 1:
                fold_layer(module, FoldedPool, clip, kernel, stride, trace.fold_factor)
                applied.update(range(trace.level_in + 1, trace.level_out + 1) if stride > 1 else ())
    return frozenset(applied)


def _use_tubes(net: nn.Module, traces: dict[str, LayerTrace]) -> int:
    """Let the net's input come as tubes of frames where its first layer is a patch embed that strides time.

    Then the batch has one size from the first line of the 2D forward on, which many transformers rely on.
    """
    first = net.get_submodule(next(iter(traces)))
    if isinstance(first, FoldedConv) and first.depth_kernel == first.depth_stride > 1 and first.groups == 1:  # type: ignore[attr-defined]
        first.tube = True  # type: ignore[assignment]
        return first.depth_stride
    return 1


def _extent(
    module: nn.Module, kernel_size: Any, stride: Any, trace: LayerTrace, plan: InflationPlan
) -> tuple[int, int]:
    """Return (kernel, stride) along D for one layer."""
    spatial, step = _scalar(kernel_size), _scalar(stride)
    is_main_road = trace.level_out > trace.level_in and not trace.in_attention
    depth_stride = plan.stride(trace.level_in, trace.level_out) if is_main_road else 1
    kernel = plan.kernel(trace.level_out, spatial)
    if isinstance(module, nn.Conv2d):
        # A patch embed tiles space without overlap, and time as well: one tube of `depth_stride` frames a token.
        tiles = step == spatial > 1
        return (min(kernel, depth_stride) if tiles else kernel), depth_stride
    shrinks = step > 1 or trace.level_out > trace.level_in
    return (1 if shrinks and depth_stride == 1 else kernel), depth_stride


def _trace_head(net: nn.Module, image: Tensor) -> tuple[bool, str]:
    """Return (features are channels-last, how time enters the head: "space" if its pooling is global, else "mean")."""
    if not _has_timm_head(net):
        return False, "mean"
    modes = {m: m.training for m in net.modules()}
    net.eval()
    try:
        with torch.no_grad():
            features = net.forward_features(image)  # type: ignore[operator]
            if not isinstance(features, Tensor) or features.ndim != 4:
                return False, "mean"
            width = getattr(net, "num_features", features.shape[1])
            nhwc = features.shape[1] != width and features.shape[-1] == width
            return nhwc, "space" if _pools_globally(net, features, dim=1 if nhwc else 2) else "mean"
    finally:
        for module, mode in modes.items():
            module.training = mode


def _pools_globally(net: nn.Module, features: Tensor, dim: int) -> bool:
    """Whether the head gives the same answer for a map and for two copies of it below each other."""
    try:
        once = net.forward_head(features)  # type: ignore[operator]
        twice = net.forward_head(torch.cat([features, features], dim))  # type: ignore[operator]
    except (RuntimeError, ValueError, AssertionError):
        return False
    if once.is_meta:
        return True
    return once.shape == twice.shape and torch.allclose(once, twice, rtol=1e-3, atol=1e-4)


def _has_timm_head(net: Any) -> bool:
    return hasattr(net, "forward_features") and hasattr(net, "forward_head")


def _is_global(module: nn.Module) -> bool:
    return "Adaptive" in type(module).__name__ or type(module).__name__ in (
        "FastGlobalAvgPool2d",
        "SelectAdaptivePool2d",
    )


def _is_pool(module: nn.Module) -> bool:
    return isinstance(module, nn.MaxPool2d | nn.AvgPool2d)


def _scalar(size: Any) -> int:
    return int(size if isinstance(size, int) else max(size)) if size is not None else 1


def _map_tensors(value: Any, function: Any) -> Any:
    """Apply a function to a tensor, or to each tensor of a list, tuple or dict of them."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {k: _map_tensors(v, function) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map_tensors(v, function) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(_map_tensors(v, function) for v in value)
    return value


__all__ = ["Inflated", "InflationError", "Triple", "first_in_chans", "inflate", "inflate_in_place"]
