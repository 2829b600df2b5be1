"""Weights of a module whole on every rank for a while, under any strategy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """Gather what ZeRO-3 has sharded, to be read; elsewhere weights are whole already. All ranks must enter it."""
    sharded = [parameter for parameter in module.parameters() if hasattr(parameter, "ds_id")]
    if not sharded:
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(sharded):
        yield
