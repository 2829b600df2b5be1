"""A video net of torchvision's whose 3D layers are the 2D ones of their H and W, under the same names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def flat(name: str) -> Any:
    """Return a video net of torchvision's in 2D, with random weights.

    What its layers do along D is not kept: a plan says it.
    """
    from torchvision import models

    with torch.device("meta"):
        net = models.get_model(name)
    for path, layer in list(net.named_modules()):
        if (own := _in_2d(layer)) is not None:
            net.set_submodule(path, own)
    return net


def _in_2d(layer: Any) -> nn.Module | None:
    if isinstance(layer, nn.Conv3d):
        of_space = (v[1:] for v in (layer.kernel_size, layer.stride, layer.padding, layer.dilation))
        has_bias = layer.bias is not None
        return nn.Conv2d(layer.in_channels, layer.out_channels, *of_space, groups=layer.groups, bias=has_bias)  # type: ignore
    if isinstance(layer, nn.BatchNorm3d):
        return nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum)
    if isinstance(layer, nn.MaxPool3d):
        return nn.MaxPool2d(*(_of_space(v) for v in (layer.kernel_size, layer.stride, layer.padding)))
    if isinstance(layer, nn.AdaptiveAvgPool3d):
        return nn.AdaptiveAvgPool2d(1)
    return nn.Linear(layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else None


def _of_space(size: Any) -> Any:
    return size if isinstance(size, int) else size[1:]


class ConvTrunk(nn.Module):
    """The trunk of s3d under a pool and a Linear: its own classifier is a 1x1 convolution before the mean."""

    def __init__(self, net: Any, num_features: int) -> None:
        super().__init__()
        self.features, self.avgpool = net.features, nn.AdaptiveAvgPool2d(1)
        dropout, last = net.classifier
        self.classifier = nn.Sequential(dropout, nn.Linear(num_features, last.out_channels))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, K)."""
        logits: Tensor = self.classifier(self.avgpool(self.features(x_NCHW)).flatten(1))
        return logits
