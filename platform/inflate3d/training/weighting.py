"""How the losses of tasks weigh: as configured, by learned uncertainty, or against that of a constant answer.

Whatever the rule, a task's own loss_weight multiplies it, and its share of the mixture comes on top.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from inflate3d.contracts import AbstractTask, SupervisedTask

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


@torch.no_grad()
def constant_loss(task: SupervisedTask, dataset: str, tally: Tensor, value: Tensor) -> Tensor:
    """Return the task's loss on a batch's values if its head knew nothing but their tally (AbstractTarget.tally)."""
    target = task.target_of(dataset)
    return task.loss(target.constant_logits(tally, value), value, target)["loss"].detach()


def weight_of(task: AbstractTask, name: str, dataset: str, constant: Mapping[str, float]) -> Any:
    """Return the factor of a task's loss: loss_weight, over the loss of the constant answer where that is known.

    constant: by "<task>/<dataset>".
    """
    return task.loss_weight / constant.get(f"{name}/{dataset}", 1.0)
