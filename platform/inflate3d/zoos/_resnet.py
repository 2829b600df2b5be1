"""A ResNet of timm as the 2D twin of a 3D one that strides time, or cuts short, in a way of its own."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import timm
import torch.nn.functional as F
from torch import Tensor, nn

BASIC, BOTTLENECK = "resnet18", "resnet50"


def resnet(block: str, layers: tuple[int, ...], *, in_chans: int = 3, num_classes: int = 0) -> nn.Module:
    """Return timm's ResNet of these blocks a stage; block: BASIC or BOTTLENECK. The 3x3 convolution strides."""
    net: nn.Module = timm.create_model(block, layers=list(layers), in_chans=in_chans, num_classes=num_classes)
    return net


def pool_before_second_stage(net: Any) -> Any:
    """Put a pool before the second stage, as layer2.pool, that does nothing in 2D: a plan gives it frames."""
    net.layer2 = nn.Sequential(OrderedDict([("pool", nn.MaxPool2d(1)), *net.layer2.named_children()]))
    return net


def shortcuts_without_weights(net: Any) -> Any:
    """Let every shortcut that changes the shape pick pixels and add zero channels (option A of arXiv:1512.03385)."""
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        block = stage[0]
        if block.downsample is not None:
            conv = block.downsample[0]
            more = conv.out_channels - conv.in_channels
            block.downsample = nn.Sequential(nn.AvgPool2d(1, conv.stride), MoreChannels(more))
    return net


class MoreChannels(nn.Module):
    """Zero channels after those that are there: (N, C, H, W) -> (N, C + more, H, W)."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return x with `more` channels of zeros."""
        return F.pad(x_NCHW, (0, 0, 0, 0, 0, self.more))
