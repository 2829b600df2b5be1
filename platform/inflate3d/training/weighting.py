"""How the losses of tasks weigh: as configured, by learned uncertainty, or against that of a constant answer.

Whatever the rule, a task's own loss_weight multiplies it, and its share of the mixture comes on top.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from inflate3d.contracts import AbstractTask, Features
from inflate3d.sample import Batch

LossWeighting = Literal["fixed", "uncertainty", "constant"]
WEIGHTINGS: tuple[LossWeighting, ...] = get_args(LossWeighting)


class TaskUncertainty(nn.Module):
    """A learned log variance s for each task: loss -> exp(-s) loss + s / 2 (Kendall et al., arXiv:1705.07115).

    It starts at s = 0. The optimum for a loss L is s = log(2 L), so tasks end up weighing 1 / (2 L): every one as much.
    """

    def __init__(self, tasks: Iterable[str]) -> None:
        super().__init__()
        self.index = {name: i for i, name in enumerate(tasks)}
        self.log_variance = nn.Parameter(torch.zeros(len(self.index)))

    def forward(self, task: str, loss: Tensor) -> Tensor:
        """Return the weighed loss of a task."""
        s = self.log_variance[self.index[task]].float()
        return torch.exp(-s) * loss + 0.5 * s

    def weights(self) -> dict[str, float]:
        """Return exp(-s) for each task, to be logged; {} where ZeRO-3 holds the values elsewhere."""
        values = torch.exp(-self.log_variance.detach().float()).tolist() if self.log_variance.numel() else []
        return dict(zip(self.index, values, strict=False))


class ConstantHead(nn.Module):
    """Answers every sample (and voxel) with the same logits (K,): those of the class frequencies."""

    def __init__(self, logits_K: Tensor, like: Tensor) -> None:
        """like: the target (B, ...) whose shape the answer has."""
        super().__init__()
        self.logits_K, self.shape = logits_K, like.shape

    def forward(self, features: Features) -> Tensor:
        """Return logits (B, K, ...)."""
        one = self.logits_K.view(1, -1, *[1] * (len(self.shape) - 1))
        return one.expand(self.shape[0], -1, *self.shape[1:])


@torch.no_grad()
def constant_loss(task: AbstractTask, counts_K: Tensor, features: Features, batch: Batch) -> Tensor:
    """Return the task's loss on a batch if its head knew nothing but how often each class occurs (counts_K)."""
    assert task.heads is not None, "the platform builds heads first"
    frequencies = (counts_K + 1) / (counts_K + 1).sum()
    head = task.heads[batch.dataset]
    task.heads[batch.dataset] = ConstantHead(frequencies.log(), batch.target)
    try:
        return task.loss(features, batch)["loss"].detach()
    finally:
        task.heads[batch.dataset] = head


def class_counts(batch: Batch, num_classes: int) -> Tensor:
    """Return how often each class occurs in a batch's targets: (K,), float64."""
    return torch.bincount(batch.target.flatten(), minlength=num_classes)[:num_classes].double()


def weight_of(task: AbstractTask, dataset: str, constant: Mapping[str, float]) -> Any:
    """Return the factor of a dataset's loss: loss_weight, over the loss of the constant answer where it is known."""
    return task.loss_weight / constant.get(dataset, 1.0)
