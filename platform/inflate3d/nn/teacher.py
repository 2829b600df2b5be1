"""Teachers: copies that follow what is trained as an exponential moving average."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def move_towards(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move every parameter of a teacher: t <- momentum t + (1 - momentum) s (arXiv:1703.01780); buffers are copied.

    For a task's `after_step`, with a frozen copy and what it was copied from.
    """
    theirs, buffers = student.state_dict(), saved_buffers(teacher)
    for key, value in teacher.state_dict().items():
        if key in buffers:
            value.copy_(theirs[key])
        else:
            value.lerp_(theirs[key].to(value.dtype), 1 - momentum)


def follow_statistics(teacher: nn.Module, is_training: bool) -> None:
    """Let a teacher's BatchNorms see data as the student's do: each batch's own statistics in training, and the
    running ones of what they saw there in evaluation. Its weights, and all else, stay as they are.
    """
    for module in teacher.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(is_training)


def saved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return what a state_dict holds besides parameters: running statistics, queues."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return {key: value for key, value in module.state_dict().items() if key not in parameters}
