"""inflate(): a 2D net becomes one over (B, C, D, H, W); its own forward runs on frames folded into the batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from timm.models._features import feature_take_indices
from torch import Tensor, nn

from inflate3d.errors import InputError
from inflate3d.inflation.assign import assign_layers
from inflate3d.inflation.call import noting
from inflate3d.inflation.convolution import fold_pointwise
from inflate3d.inflation.errors import InflationError
from inflate3d.inflation.features import InflatedFeatureInfo
from inflate3d.inflation.head import HeadLayout
from inflate3d.inflation.kernels import keep_kernels, of_any_rank
from inflate3d.inflation.layers import (
    FoldedLayer,
    as_rgb,
    clip_told,
    first_tensor,
    fold_into_tubes,
    folding,
    map_tensors,
)
from inflate3d.inflation.layout import Layout, Layouts, fingerprint, outline
from inflate3d.inflation.look import look_at
from inflate3d.inflation.mixing import Mixin, mix
from inflate3d.inflation.plan import DEEPEST, InflationPlan, as_triple, resolve_plan
from inflate3d.inflation.spec import AttentionName, Inflation, StatisticsName, TimePadding
from inflate3d.inflation.steps import Strides
from inflate3d.inflation.taps import Taps, inflate_kernel
from inflate3d.inflation.trace import Trace
from inflate3d.inflation.verify import settle_strides
from inflate3d.inflation.zeros import pad_with_zeros
from inflate3d.sample import Triple


class Inflated(Mixin):
    """A 2D net whose methods take and give clips; its parameters keep their names.

    Shapes: forward (B, C, D, H, W) -> logits (B, K). forward_features -> (B, C', D', H', W'), or (B, D', ...) with the
    2D net's own rest where its maps are channels-last or tokens. features_only nets give a list of
    (B, C_l, D_l, H_l, W_l).
    """

    prefix = "Inflated"
    has_timm_methods = False
    plan: InflationPlan
    taps: Taps
    min_depth: int
    """Frames that leave one window of the plan's head_pool; 1 for feature nets, which have no head."""
    tube: int
    takes_rgb_alone: bool
    """The 2D net cannot be built for another number of channels; they are brought to three (see as_rgb)."""
    held: list[str]
    """The modules that hold their frames (see AtRate); most nets have none."""
    depth_reduction: int
    head_layout: HeadLayout

    def forward(self, x_BCDHW: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Answer for a clip: (B, C, D, H, W) -> (B, K), or what the 2D net returns, frame by frame."""
        with self._call(x_BCDHW):
            output = super().forward(self._fold(x_BCDHW), *args, **kwargs)  # type: ignore[misc]
            if isinstance(output, list):
                is_nhwc = "NHWC" in str(getattr(self, "output_fmt", "NCHW"))
                maps = zip(output, self._reductions(output), strict=True)
                return [self._unfold_map(y, r, nhwc=is_nhwc) for y, r in maps]
            return map_tensors(
                output, lambda y: self._mean_over_time(self._unfold(y)) if y.ndim == 2 else self._unfold_map(y)
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """As nn.Module's, where memory formats for four axes fit kernels of five as well, and the other way round."""
        return super()._apply(of_any_rank(fn), recurse)  # type: ignore[misc]

    # ------------------------------------------------------------------------------------------------ folding

    @contextmanager
    def _call(self, x_BCDHW: Tensor) -> Iterator[None]:
        """Tell all that runs inside how many clips of how many frames came."""
        self._check(x_BCDHW)
        frames = -(-x_BCDHW.shape[2] // self.tube)
        with folding(x_BCDHW.shape[0], frames), noting(self):  # type: ignore[arg-type]
            yield

    def _check(self, x_BCDHW: Tensor) -> None:
        if x_BCDHW.ndim != 5:
            raise InputError(f"input has shape {tuple(x_BCDHW.shape)}; expected 5 axes (B, C, D, H, W)")
        _, channels, depth, height, width = x_BCDHW.shape
        expected = getattr(self, "in_chans_expected", channels)
        if channels != expected:
            raise InputError(
                f"input has {channels} channels in shape {tuple(x_BCDHW.shape)} (B, C, D, H, W); the net takes "
                f"{expected}: build it with in_chans={channels}"
            )
        if depth < self.min_depth:
            raise InputError(
                f"input has {depth} frames in shape {tuple(x_BCDHW.shape)} (B, C, D, H, W); plan {self.plan.name!r} "
                f"needs at least {self.min_depth}: give longer clips, or plan='auto' with "
                f"input_size=({depth}, {height}, {width})"
            )

    def _fold(self, x_BCDHW: Tensor) -> Tensor:
        return fold_into_tubes(as_rgb(x_BCDHW) if self.takes_rgb_alone else x_BCDHW, self.tube)

    def _unfold(self, y: Tensor, reduction: int | None = None) -> Tensor:
        """(B*D', ...) -> (B, D', ...); of frames that were held one each is kept."""
        clip = clip_told(type(self).__name__)
        wanted = max(1, (reduction or self.depth_reduction) // self.tube)
        if clip.is_empty:
            return y.unflatten(0, (0, -(-clip.frames // wanted)))
        y = y.unflatten(0, (clip.batch_size, -1))
        if not self.held:
            return y
        rates = sorted({max(1, self.plan.stride(0, level) // self.tube) for level in range(DEEPEST + 1)})
        given = next((rate for rate in rates if -(-clip.frames // rate) == y.shape[1]), wanted)
        return y[:, :: max(1, wanted // given)]

    def _unfold_map(self, y: Tensor, reduction: int | None = None, *, nhwc: bool = False) -> Tensor:
        """(B*D', C, H, W) -> (B, C, D', H, W); a channels-last map is brought to the same order."""
        y = self._unfold(y, reduction)
        return y.movedim(-1, 1) if nhwc else y.transpose(1, 2)

    def _unfold_features(self, y: Tensor) -> Tensor:
        return self._unfold_map(y) if y.ndim == 4 and not self.head_layout.is_nhwc else self._unfold(y)

    def _reductions(self, maps: list[Any], indices: Any = None) -> list[int | None]:
        """Return the reduction along D of each map that the net lists."""
        info = getattr(self, "feature_info", None)
        if not isinstance(info, InflatedFeatureInfo):
            return [None] * len(maps)
        if indices is None:
            found = info.get("reduction_d")
        else:
            found = [info.info[i]["reduction_d"] for i in feature_take_indices(len(info.info), indices)[0]]
        return found if len(found) == len(maps) else [None] * len(maps)

    def _mean_over_time(self, y: Tensor, dim: int = 1) -> Tensor:
        return self._head_window(y, dim).mean(dim)

    def _head_window(self, y: Tensor, dim: int) -> Tensor:
        """I3D's last average pool: windows of `head_pool` frames, stride 1."""
        window = self.plan.head_pool
        return y if window is None or y.shape[dim] <= window else y.unfold(dim, window, 1).mean(-1)

    def _time_into_space(self, y: Tensor) -> Tensor:
        """Lay frames below each other, so that the head's own global pool (average, max, both) is the 3D one."""
        is_map = y.ndim == 5 and not self.head_layout.is_nhwc
        y = self._head_window(y, 2 if is_map else 1)
        if self.head_layout.time == "space" and y.ndim == 5:
            return y.flatten(2, 3) if is_map else y.flatten(1, 2)
        return y.mean(2 if is_map else 1)


class InflatedTimm(Inflated):
    """An inflated net with timm's forward_features, forward_head, forward_intermediates and reset_classifier."""

    has_timm_methods = True

    def forward(self, x_BCDHW: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Answer for a clip: (B, C, D, H, W) -> (B, K); without global pooling, the features of every frame."""
        return self.forward_head(self.forward_features(x_BCDHW, *args, **kwargs))

    def forward_features(self, x_BCDHW: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the net's last features, as timm's forward_features does, with D' after the batch or the channels."""
        with self._call(x_BCDHW):
            output = super().forward_features(self._fold(x_BCDHW), *args, **kwargs)  # type: ignore[misc]
            return map_tensors(output, self._unfold_features)

    def forward_head(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Pool over space and time and classify; time is averaged before whatever the head does after pooling."""
        first, head = first_tensor(x), super().forward_head  # type: ignore[misc]
        if self.head_layout.time != "none":
            with folding(first.shape[0]), noting(self):  # type: ignore[arg-type]
                return head(map_tensors(x, self._time_into_space), *args, **kwargs)
        frames = first.shape[2 if self._is_map(first) else 1] * max(1, self.depth_reduction // self.tube)
        with folding(first.shape[0], frames), noting(self):  # type: ignore[arg-type]
            return map_tensors(head(map_tensors(x, self._fold_features), *args, **kwargs), self._unfold_features)

    def forward_intermediates(self, x_BCDHW: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As timm's; NCHW maps come as (B, C, D', H', W'), all else as (B, D', ...)."""
        with self._call(x_BCDHW):
            output = super().forward_intermediates(self._fold(x_BCDHW), *args, **kwargs)  # type: ignore[misc]
            as_map = kwargs.get("output_fmt", "NCHW") == "NCHW"
            return self._unfold_intermediates(output, args[0] if args else kwargs.get("indices"), as_map=as_map)

    def _unfold_intermediates(self, output: Any, indices: Any, *, as_map: bool) -> Any:
        def unfold_one(reduction: int | None, y: Tensor) -> Tensor:
            return self._unfold_map(y, reduction) if as_map and y.ndim == 4 else self._unfold(y, reduction)

        def unfold(maps: list[Any]) -> list[Any]:
            reductions = self._reductions(maps, indices)
            return [map_tensors(m, partial(unfold_one, r)) for m, r in zip(maps, reductions, strict=True)]

        if isinstance(output, list):
            return unfold(output)
        if isinstance(output, dict):
            features = {"image_features"}
            return {
                k: map_tensors(v, self._unfold_features) if k in features else unfold(v) if isinstance(v, list) else v
                for k, v in output.items()
            }
        final, maps = output
        return map_tensors(final, self._unfold_features), unfold(maps)

    def reset_classifier(self, *args: Any, **kwargs: Any) -> None:
        """As timm's; the head is looked at anew, since it may pool in another way from now on."""
        super().reset_classifier(*args, **kwargs)  # type: ignore[misc]
        self.label_names: list[str] = []  # what the classes of the former classifier were called
        self.head_layout = self.head_layout.looked_at(self, super().forward_head)  # type: ignore[misc]

    def _is_map(self, y: Tensor) -> bool:
        return y.ndim == 5 and not self.head_layout.is_nhwc

    def _fold_features(self, y: Tensor) -> Tensor:
        return y.transpose(1, 2).flatten(0, 1) if self._is_map(y) else y.flatten(0, 1)


def inflate(
    module_2d: nn.Module,
    *,
    example_size: Sequence[int],
    inflation: str | Inflation = "center",
    overshoot: float = 0.25,
    plan: str | InflationPlan | dict[str, Any] = "auto",
    attention: AttentionName = "frame",
    statistics: StatisticsName = "clip",
    time_padding: TimePadding = "replicate",
    spacing_mm: Sequence[float] | None = None,
    in_chans: int | None = None,
) -> nn.Module:
    """Return a copy of a 2D net that takes clips (B, C, D, H, W); `module_2d` itself is never changed.

    example_size: (D, H, W) of a usual input; H and W must suit the 2D net, D and `spacing_mm` steer plan="auto".
    inflation to time_padding: as create_model's. The result is checked on tiny static clips. Raises InflationError that
    names the layer which breaks the invariant.
    """
    size = as_triple(example_size, "example_size")
    words = dict(plan=plan, attention=attention, statistics=statistics, time_padding=time_padding)
    value = Inflation.of(inflation, overshoot=overshoot, **words)
    value = replace(value, plan=resolve_plan(value.plan, input_size=size, spacing_mm=spacing_mm))
    return inflate_in_place(copy.deepcopy(module_2d), value, trace_sizes=[size[1:]], in_chans=in_chans)


def inflate_in_place(
    net: nn.Module,
    inflation: Inflation,
    *,
    trace_sizes: Sequence[tuple[int, int]],
    in_chans: int | None = None,
    layouts: Layouts | None = None,
) -> nn.Module:
    """Inflate a net that nobody else holds.

    trace_sizes: the (H, W) on which the 2D forward is traced and checked; the first that the net takes is used.
    layouts: where what was found is kept; a net of the same making is then laid by it, without a forward. Only for nets
    whose forwards are their classes' own. Raises InflationError where what was kept does not give the same net.
    """
    channels = in_chans or first_in_chans(net)
    made_of = "" if layouts is None else fingerprint(net, inflation, sizes=trace_sizes, channels=channels)
    if layouts is not None and (known := layouts.find(made_of)) is not None:
        _lay_as_before(net, inflation, known)
    else:
        seen = look_at(net, inflation, trace_sizes, channels, in_chans)
        strides = _lay(net, inflation, seen.trace, seen.head, seen.images.shape[1:], is_list=seen.is_list)
        settle_strides(net, strides, seen.images, seen.trace)
        _set_channels(net, seen.channels, seen.images.shape[1])
        if layouts is not None:
            layouts.keep(made_of, Layout.of(net, seen.trace, strides, seen.head, seen.images.shape[1:]))
    if not inflation.taps.is_exact:
        _draw_kernels(net, inflation.taps)
    if inflation.time_padding != "replicate":
        # At last: with zeros past its ends no clip is static, so the check was made without them.
        pad_with_zeros(net, same=inflation.time_padding == "same")
    return net


def _lay(
    net: nn.Module,
    inflation: Inflation,
    trace: Trace,
    head: HeadLayout | None,
    image: Sequence[int],
    *,
    is_list: bool,
) -> Strides:
    """Turn the net into an inflated one, but for its strides along D, which are returned."""
    taps, plan = inflation.taps, inflation.laid
    # Random taps keep no answer to check by; they come once everything has found its place.
    settled = taps if taps.is_exact else Taps("mean")
    words = dict(attention=inflation.attention, statistics=inflation.statistics)
    assign_layers(net, trace, plan=plan, taps=settled, **words)  # type: ignore[arg-type]
    fold_pointwise(net)
    keep_kernels(net)
    strides = Strides(net, trace, plan)
    net.plan, net.taps, net.in_chans_expected = plan, taps, image[0]  # type: ignore[assignment]
    net.head_layout, net.held, net.depth_reduction = head or HeadLayout(), strides.holds, strides.total  # type: ignore[assignment]
    if hasattr(net, "feature_info"):
        net.feature_info = InflatedFeatureInfo.of(net.feature_info, plan, strides.deepest)  # type: ignore[assignment]
    mix(net, InflatedTimm if head else Inflated)
    net.trace_size = tuple(image[1:])  # type: ignore[assignment]
    net.min_depth = 1 if is_list else plan.min_depth  # type: ignore[assignment]
    net.takes_rgb_alone = False  # type: ignore[assignment]  # the check gives what the 2D net takes
    return strides


def _lay_as_before(net: nn.Module, inflation: Inflation, known: Layout) -> None:
    """Lay a net by what was found in another of the same making."""
    if known.head is not None:
        known.head.draw(net)  # as a look would, so that whatever is drawn after it stays the same
    strides = _lay(net, inflation, known.trace(), known.head, known.image, is_list=known.is_list)
    known.apply(net, strides)
    net.held = strides.holds  # type: ignore[assignment]
    _set_channels(net, known.channels, known.image[0])
    if outline(net) != known.outline:
        raise InflationError(
            f"{type(net).__name__}: the layout that was kept for this net gives another one; delete the folder "
            "`layouts` of the cache (INFLATE3D_CACHE, or ~/.cache/inflate3d) and report it"
        )


def _set_channels(net: nn.Module, channels: int, traced: int) -> None:
    net.in_chans_expected, net.takes_rgb_alone = channels, traced != channels  # type: ignore[assignment]


def _draw_kernels(net: nn.Module, taps: Taps) -> None:
    """Give every inflated layer a fresh kernel of its 2D kernel's scale."""
    modules: Any = net.modules()
    for module in modules:
        if isinstance(module, FoldedLayer) and module.depth_kernel > 1 and hasattr(module, "weight"):
            weight: Tensor = module.weight.data
            flat = weight.sum(2).reshape(*weight.shape[:2], *(weight.shape[3:] or (1, 1)))
            module.weight.data = inflate_kernel(flat, module.depth_kernel, taps=taps).reshape(weight.shape)


def first_in_chans(net: nn.Module) -> int:
    """Return the channels that the first convolution (or linear patch embed) takes."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels * 1
    raise InputError(f"{type(net).__name__} has no Conv2d; name its input channels with in_chans=")


__all__ = ["Inflated", "InflationError", "Triple", "first_in_chans", "inflate", "inflate_in_place"]
