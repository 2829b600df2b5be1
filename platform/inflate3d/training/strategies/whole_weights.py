"""Weights of a module whole on every rank for a while, under any strategy; and under which they never are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


def is_sharded(strategy: Any) -> bool:
    """Whether no rank holds a whole weight: ZeRO-3, FSDP and model parallelism."""
    return getattr(strategy, "stage", None) == 3 or type(strategy).__name__.startswith(("FSDP", "ModelParallel"))
