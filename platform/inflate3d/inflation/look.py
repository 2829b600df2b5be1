"""A look at a 2D net before it is inflated: traced on two images of the smallest size that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from inflate3d.inflation.errors import InflationError
from inflate3d.inflation.head import HeadLayout
from inflate3d.inflation.layers import RGB
from inflate3d.inflation.spec import Inflation
from inflate3d.inflation.trace import IMAGES, Trace, trace_net


class Seen(NamedTuple):
    """What a look at a 2D net showed."""

    images: Tensor
    trace: Trace
    head: HeadLayout | None
    channels: int

    @property
    def is_list(self) -> bool:
        return isinstance(self.trace.output, list)


def look_at(
    net: nn.Module, inflation: Inflation, sizes: Sequence[tuple[int, int]], channels: int, in_chans: int | None
) -> Seen:
    """Trace a net, and see how its head meets time. channels: `in_chans`, or those of its first convolution.

    Raises InflationError where it takes none of the sizes (H, W).
    """
    weight = next(net.parameters())
    is_joint = inflation.attention == "joint"
    try:
        images, trace = _trace_smallest(net, sizes, channels, weight, attention=is_joint)
    except InflationError:
        if channels == RGB:
            raise
        channels = in_chans or RGB  # a stem that first lays space into channels takes another number than its input has
        images, trace = _trace_smallest(net, sizes, RGB, weight, attention=is_joint)
    return Seen(images, trace, HeadLayout.of(net, images, trace.features), channels)


def _trace_smallest(
    net: nn.Module, sizes: Sequence[tuple[int, int]], channels: int, weight: Tensor, *, attention: bool
) -> tuple[Tensor, Trace]:
    """Trace the net on the first of `sizes` that it takes."""
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        images = torch.randn(IMAGES, channels, *size, generator=generator).to(weight.device, weight.dtype)
        try:
            return images, trace_net(net, images, answers=not weight.is_meta, attention=attention)
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            if size == sizes[-1]:
                raise InflationError(
                    f"{type(net).__name__} does not take images of {size[0]} x {size[1]} in 2D ({error}); give a size "
                    "that it takes"
                ) from error
    raise AssertionError("no size to trace on")
