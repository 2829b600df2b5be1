"""BatchNorm's running statistics, computed again from unlabelled data."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from inflate3d.models import Backbone
from inflate3d.sample import Batch


def batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the layers that hold running statistics."""
    layers = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return [layer for layer in layers if layer.track_running_stats]


@torch.no_grad()
def recalibrate(backbone: Backbone, batches: Iterator[Batch]) -> None:
    """Replace the running statistics by the mean over these batches; weights and modes are unchanged."""
    layers = batch_norms(backbone)
    if not layers:
        return
    before = [(layer.momentum, layer.training) for layer in layers]
    backbone.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # in torch this means the plain mean over all batches
        layer.train()
    for batch in batches:
        backbone(batch.image, domain=batch.dataset)
    for layer, (momentum, training) in zip(layers, before, strict=True):
        layer.momentum = momentum
        layer.train(training)
