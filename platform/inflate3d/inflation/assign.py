"""Which layers look across frames, and how: convolutions, linears, pools, attention, statistics, stochastic depth."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any

from timm.models import FeatureInfo
from torch import nn

from inflate3d.errors import InputError, unknown_name
from inflate3d.inflation.convolution import FoldedConv, has_known_forward
from inflate3d.inflation.errors import InflationError
from inflate3d.inflation.joint import JointAttention
from inflate3d.inflation.layers import (
    ClipResponseNorm,
    ClipSqueeze,
    ClipStatistics,
    FoldedDropPath,
    FoldedLayer,
    FoldedLinear,
    FoldedPool,
    fold_layer,
)
from inflate3d.inflation.mixing import base_name
from inflate3d.inflation.plan import InflationPlan
from inflate3d.inflation.spec import AttentionName, StatisticsName
from inflate3d.inflation.taps import Taps, inflate_kernel
from inflate3d.inflation.trace import LayerTrace, Trace

POINTWISE_SPATIAL = 3  # a pointwise layer that stands in for a spatial one reaches as far along D as a 3x3 kernel
FEWEST_CHANNELS = 16  # narrower pointwise layers mix heads or make tables, not features

# timm's layers whose output hangs on statistics of H and W; all else in them is pointwise, so frames may be laid
# below each other. Squeeze-excites of other classes are found by what their first layer is given (ClipSqueeze).
_WITH_STATISTICS = {
    "BatchNormGroup",
    "CecaModule",
    "ChannelAttn",
    "EcaModule",
    "EffectiveSEModule",
    "EvoNorm2dS0",
    "EvoNorm2dS0a",
    "EvoNorm2dS1",
    "EvoNorm2dS1a",
    "EvoNorm2dS2",
    "EvoNorm2dS2a",
    "FilterResponseNormAct2d",
    "FilterResponseNormTlu2d",
    "GlobalContext",
    "GlobalResponseNorm",
    "GroupNorm",
    "GroupNorm1",
    "GroupNorm1Act",
    "GroupNormAct",
    "InstanceNorm2d",
    "LightChannelAttn",
    "SEModule",
    "SqueezeExcite",
    "SqueezeExciteCl",
}


def assign_layers(
    net: nn.Module,
    trace: Trace,
    *,
    plan: InflationPlan,
    taps: Taps,
    attention: AttentionName,
    statistics: StatisticsName,
) -> None:
    """Turn layers of the 2D net into folded ones, without strides along D yet."""
    modules = dict(net.named_modules())
    if not isinstance(getattr(net, "feature_info", None), FeatureInfo):  # feature nets may lack the deeper layers
        _check_layers(modules, plan)
    for name, module in modules.items():
        record = trace.get(name)
        if base_name(module) == "DropPath":
            fold_layer(module, FoldedDropPath)
        elif record is None:
            continue
        elif isinstance(module, nn.Conv2d):
            _assign_convolution(name, module, record, plan, taps)
        elif is_pool(module) and record.fold == 1 and not record.is_global:
            fold_layer(module, FoldedPool)  # a pool that shrinks space reaches along D where it strides D
            if record.level_in == record.level_out or plan.layer(name):
                module.depth_kernel = pool_kernel(module, record, plan)  # type: ignore[assignment]
        elif attention == "joint" and record.calls_attention:
            fold_layer(module, JointAttention)
        elif attention == "joint" and getattr(module, "fused_attn", True) is False:
            raise InputError(
                f"attention='joint' joins frames in scaled_dot_product_attention, which layer {name!r} does not call: "
                "its fused_attn is False. Call timm.layers.set_fused_attn(True) and leave exportable=True out, or take "
                "attention='frame'"
            )
    if statistics == "clip":
        _assign_statistics(modules, trace)
    for block, name in _pointwise_stand_ins(modules, trace):
        kernel = plan.kernel(_level(trace[block]), POINTWISE_SPATIAL)
        if kernel > 1:
            inflate_layer(modules[name], kernel, taps)


def inflate_layer(module: Any, kernel: int, taps: Taps) -> None:
    """Give a convolution or Linear the taps of its kernel along D, and fold it."""
    is_linear = isinstance(module, nn.Linear)
    weight = module.weight.data[:, :, None, None] if is_linear else module.weight.data
    inflated = inflate_kernel(weight, kernel, taps=taps)
    module.weight = nn.Parameter(inflated[..., 0, 0] if is_linear else inflated, module.weight.requires_grad)
    fold_layer(module, FoldedLinear if is_linear else FoldedConv, kernel)


def _check_layers(modules: dict[str, nn.Module], plan: InflationPlan) -> None:
    """InputError for a pattern of the plan that names no convolution or pool."""
    known = [name for name, module in modules.items() if isinstance(module, nn.Conv2d) or is_pool(module)]
    for pattern, *_ in plan.layers:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise unknown_name("layer", pattern, known, where=f"plan {plan.name!r}: layers")


def _assign_convolution(name: str, conv: nn.Conv2d, record: LayerTrace, plan: InflationPlan, taps: Taps) -> None:
    own = plan.layer(name)
    if record.fold != 1 or (max(conv.kernel_size) == max(conv.stride) == 1 and own is None):
        return
    if not has_known_forward(conv):
        raise InflationError(
            f"layer {name!r} is a {type(conv).__name__}, a Conv2d with a forward of its own; inflation knows "
            "torch's, and timm's SAME-padded and weight-standardised ones"
        )
    kernel = own[0] if own else plan.kernel(_level(record), max(conv.kernel_size))
    if is_tile(conv) and own is None:
        # A patch embed tiles space without overlap, and time as well: one tube of frames a token.
        kernel = plan.stride(record.level_in or 0, _level(record)) if kernel > 1 else 1
    inflate_layer(conv, kernel, taps)


def _assign_statistics(modules: dict[str, nn.Module], trace: Trace) -> None:
    inside: tuple[str, ...] = ()
    for name, record in trace.items():
        module: Any = modules[name]
        if name.startswith(inside) and inside:
            continue
        if base_name(module) in _WITH_STATISTICS and record.fold == 1 and record.level_out is not None:
            inside = (*inside, f"{name}.")
            is_norm = base_name(module) == "GlobalResponseNorm"
            fold_layer(module, ClipResponseNorm if is_norm else ClipStatistics)
            is_nhwc = base_name(module) == "SqueezeExciteCl" or getattr(module, "spatial_dim", None) == (1, 2)
            module.channels_last = is_nhwc
        elif record.squeezed and record.fold == 1 and is_pointwise(module):
            squeezer = next((a for a in trace.ancestors(name) if not a.squeezed), None)
            if squeezer and squeezer.level_out is not None and not squeezer.is_global:
                inside = (*inside, f"{squeezer.name}.")  # what follows in it is the clip's already
                fold_layer(module, ClipSqueeze)


def _pointwise_stand_ins(modules: dict[str, nn.Module], trace: Trace) -> list[tuple[str, str]]:
    """Return (block, pointwise layer) for each block that holds no layer which looks across frames.

    A block is the innermost item of a sequence that holds two pointwise layers or more. Of its pointwise layers the
    smallest that keeps the block's width is taken: in a transformer the projection after attention.
    """
    blocks: dict[str, list[str]] = {}
    for name, record in trace.items():
        if not is_pointwise(modules[name]) or record.fold != 1 or record.squeezed:
            continue
        above = [a.name for a in trace.ancestors(name) if re.search(r"(^|[._])\d+$", a.name)]
        for block in above:
            blocks.setdefault(block, []).append(name)
    owners = [b for b, layers in blocks.items() if len(layers) > 1]
    innermost = [b for b in owners if not any(o.startswith(f"{b}.") for o in owners)]
    chosen = []
    for block in innermost:
        if not any(_looks_across(m) for n, m in modules.items() if n.startswith(f"{block}.")):
            width = trace[block].width
            chosen.append((block, min(blocks[block], key=lambda n: _preference(modules[n], width))))
    return chosen


def _preference(layer: Any, width: int) -> tuple[bool, bool, int]:
    """Order pointwise layers: wide enough first, then those that keep the block's width, then the smaller ones."""
    into, out = (
        (layer.in_features, layer.out_features)
        if isinstance(layer, nn.Linear)
        else (layer.in_channels, layer.out_channels)
    )
    return (min(into, out) < FEWEST_CHANNELS, 2 * min(into, out) < width, layer.weight.numel())


def _looks_across(module: nn.Module) -> bool:
    return isinstance(module, JointAttention) or (isinstance(module, FoldedLayer) and module.depth_kernel > 1)


def is_pointwise(module: nn.Module) -> bool:
    """Whether a module is a Linear or a 1x1 convolution with torch's own arithmetic."""
    if isinstance(module, FoldedLayer):
        return False
    is_conv = isinstance(module, nn.Conv2d) and max(module.kernel_size) == max(module.stride) == module.groups == 1
    return type(module).forward in (nn.Linear.forward, nn.Conv2d.forward) and (is_conv or isinstance(module, nn.Linear))


def pool_kernel(pool: Any, record: LayerTrace, plan: InflationPlan) -> int:
    """Return the frames that a pool's window covers: symmetric, as far as the plan's kernels reach, or its own."""
    if own := plan.layer(record.name):
        return own[0]
    spatial = _scalar(pool.kernel_size)
    return min(plan.kernel(_level(record), spatial), spatial)


def is_pool(module: nn.Module) -> bool:
    """Whether a module is a plain pool with a window."""
    return isinstance(module, nn.MaxPool2d | nn.AvgPool2d)


def is_tile(conv: Any) -> bool:
    """Whether a convolution tiles its input without overlap, as a patch embed does."""
    return bool(conv.kernel_size[0] == conv.stride[0] > 1)


def _level(record: LayerTrace) -> int:
    level = record.level_out if record.level_out is not None else record.level_in
    return level or 0


def _scalar(size: Any) -> int:
    return int(size if isinstance(size, int) else max(size))
