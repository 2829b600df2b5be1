"""What a micro-batch does not use takes part with weight 0: every rank and strategy sees the same graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

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
    """Return a 0 that gives every parameter of the modules that a dataset's micro-batch does not use the gradient 0.

    ZeRO-3 holds a parameter whole only while its module runs; so there the modules run, on constant minimal features
    and in evaluation mode, so that their norms do not move. like: a tensor on the device.
    """
    idle = idle_modules(tasks, dataset)
    parameters = [p for task, name in idle for p in task.modules()[name].parameters() if p.requires_grad]
    if not any(hasattr(p, "ds_id") for p in parameters):
        return cast(Tensor, _Untouched.apply(like, *parameters)) if parameters else like.new_zeros(())
    total, features = like.new_zeros((), dtype=torch.float32), backbone.minimal_features()
    for task, name in idle:
        with evaluation_mode(task.modules()[name]):
            total = total + 0.0 * task.idle(name, features).float().sum()
    return total


class _Untouched(torch.autograd.Function):
    """A 0 whose gradient with respect to each parameter is 0: the graph of a module that runs and does not count."""

    @staticmethod
    def forward(ctx: Any, like: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return like.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


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
