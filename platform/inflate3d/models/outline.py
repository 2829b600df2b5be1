"""What a plan makes of a net, level by level: kernels, strides, sizes and parameters, seen in one pass without data."""

# N: frames folded into the batch (times what else the net folds there), C channels, D H W frames, height, width.

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inflate3d.models.create import create_model
from inflate3d.sample import Triple


@dataclass
class LevelOutline:
    """One level of an inflated net.

    kernel: of the largest convolution whose output lies there, None without one. stride: of the step into the level.
    size: of the last map there. parameters: of everything that runs from the first module at this level to the next.
    """

    level: int
    kernel: Triple | None
    stride: Triple
    size: Triple
    channels: int
    parameters: int


def outline(name: str, *, input_size: Triple, **options: Any) -> list[LevelOutline]:
    """Return the levels of what create_model(name, input_size=input_size, **options) builds, shallow to deep."""
    return outline_of(empty_net(name, input_size=input_size, **options), input_size)


def empty_net(name: str, **options: Any) -> Any:
    """Return what create_model builds, on the meta device: no weights are drawn, and maps take no memory."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the weights are random
        return create_model(name, **options)


def outline_of(net: Any, input_size: Triple) -> list[LevelOutline]:
    """Return the levels of an inflated net on the meta device for one clip of `input_size`."""
    watch = _Watch(input_size, net.feature_info if hasattr(net, "feature_info") else None)
    named = [(m, p) for m in net.modules() for p in m.parameters(recurse=False)]
    handles = [m.register_forward_hook(watch.see) for m in dict.fromkeys([*net.modules()]) if m is not net]
    with torch.no_grad():
        net.eval()(torch.empty(1, net.in_chans_expected, *input_size, device="meta"))
    for handle in handles:
        handle.remove()
    counted: set[int] = set()
    for module, parameter in named:
        if id(parameter) not in counted:
            counted.add(id(parameter))
            watch.levels[watch.level_of.get(module, min(watch.levels))].parameters += parameter.numel()
    return watch.finished()


class _Watch:
    """Notes at which level each module runs."""

    def __init__(self, input_size: Triple, info: Any) -> None:
        self.input_size = input_size
        entries = list(info.info) if info is not None else []
        self.channels = {round(math.log2(entry["reduction"])): entry["num_chs"] for entry in entries}
        extents = [[-(-n // entry["reduction"]) for n in input_size[1:]] for entry in entries]
        self.nhwc = {(*extent, entry["num_chs"]) for extent, entry in zip(extents, entries, strict=True)}
        self.levels: dict[int, LevelOutline] = {}
        self.level_of: dict[nn.Module, int] = {}
        self.now = 0

    def see(self, module: Any, _inputs: Any, y: Any) -> None:
        if isinstance(module, nn.Conv2d) and isinstance(y, Tensor) and y.ndim == 4 and y.shape[2] > 1:
            self._see_map(y.shape[0], y.shape[2], y.shape[3], y.shape[1], module)
        elif isinstance(y, Tensor) and tuple(y.shape[1:]) in self.nhwc:
            self._see_map(*y.shape)
        self.level_of.setdefault(module, self.now)

    def _see_map(self, frames: int, height: int, width: int, channels: int, conv: Any = None) -> None:
        self.now = level = max(0, round(math.log2(self.input_size[1] / height)))
        size = (frames, height, width)
        row = self.levels.setdefault(level, LevelOutline(level, None, (1, 1, 1), size, channels, 0))
        row.size, row.channels = size, self.channels.get(level, channels)
        if conv is not None:
            tube = conv.depth_stride if getattr(conv, "tube", False) else 0
            kernel = (tube or getattr(conv, "depth_kernel", 1), *conv.kernel_size)
            if row.kernel is None or math.prod(kernel) > math.prod(row.kernel):
                row.kernel = kernel

    def finished(self) -> list[LevelOutline]:
        above = self.input_size
        rows = [self.levels[level] for level in sorted(self.levels)]
        for row in rows:
            row.stride = tuple(max(1, round(a / b)) for a, b in zip(above, row.size, strict=True))  # type: ignore[assignment]
            above = row.size
        return rows
