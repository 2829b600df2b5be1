"""What a micro-batch does not use takes part with weight 0: every rank and strategy sees the same graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from inflate3d.contracts import AbstractTask, Features
from inflate3d.models import Backbone


def idle_modules(tasks: Mapping[str, AbstractTask], dataset: str) -> list[tuple[AbstractTask, str]]:
    """Return the modules that a dataset's micro-batch leaves out: of its own tasks those named after other datasets."""
    return [(task, name) for task in tasks.values() for name in task.modules() if not _is_used(task, name, dataset)]


def _is_used(task: AbstractTask, name: str, dataset: str) -> bool:
    return dataset in task.datasets and (name == dataset or name not in task.datasets)


def idle_loss(tasks: Mapping[str, AbstractTask], dataset: str, backbone: Backbone, like: Tensor) -> Tensor:
    """Return 0 x the output of every module that a dataset's micro-batch does not use, on constant minimal features.

    In evaluation mode, so that norms of idle modules do not move. like: a tensor on the device.
    """
    total = like.new_zeros((), dtype=torch.float32)
    if idle := idle_modules(tasks, dataset):
        features = backbone.minimal_features()
        for task, name in idle:
            with evaluation_mode(task.modules()[name]):
                total = total + 0.0 * task.idle(name, features).float().sum()
    return total


def unused_loss(made: Iterable[Features]) -> Tensor | float:
    """Return 0 x the features, so that the parts of the backbone which heads leave out take part as well."""
    return sum(0.0 * (f.pooled.float().sum() + sum(m.float().sum() for m in f.maps)) for f in made)


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for a while, and each of its parts back into its own mode."""
    training: Iterable[nn.Module] = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
