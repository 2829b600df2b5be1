"""BatchNorm's running statistics, computed again from the batches that pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the layers that hold running statistics."""
    layers = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return [layer for layer in layers if layer.track_running_stats]


@contextmanager
def recalibrating(module: nn.Module) -> Iterator[None]:
    """Replace the running statistics by the mean over the batches that pass inside; weights and modes are unchanged.

    No gradients are computed inside. Statistics of a domain (DomainNorm) that no batch passes for stay.
    """
    layers = batch_norms(module)
    modes, momenta = [(m, m.training) for m in module.modules()], [layer.momentum for layer in layers]
    module.eval()
    for layer in layers:
        layer.reset_running_stats()  # also the count of batches, so that the first one replaces what was
        layer.momentum = None  # in torch this means the plain mean over all batches
        layer.train()
    try:
        with torch.no_grad():
            yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for part, training in modes:
            part.training = training
