"""The metrics of every task and dataset in evaluation, and the one score that chooses the best checkpoint."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from inflate3d.contracts import AbstractTask, Prediction
from inflate3d.sample import Batch


class Scores(nn.Module):
    """Metrics by task and dataset. A module, so that they follow to the device; none of it is saved."""

    def __init__(self, tasks: Mapping[str, AbstractTask]) -> None:
        super().__init__()
        self.main_metric = {name: task.main_metric for name, task in tasks.items()}
        self.metrics = nn.ModuleDict(
            {
                name: nn.ModuleDict({d: task.metrics(task.cards[d]) for d in task.datasets})
                for name, task in tasks.items()
            }
        )
        self._order = [(name, d) for name, task in tasks.items() for d in task.datasets]
        self._count = dict.fromkeys(self._order, 0)

    def of(self, task: str, dataset: str) -> MetricCollection:
        """Return the metrics of one dataset."""
        return self.metrics[task][dataset]  # type: ignore[index, return-value]

    def reset(self) -> None:
        """Forget everything."""
        for task, dataset in self._order:
            self.of(task, dataset).reset()
        self._count = dict.fromkeys(self._order, 0)

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Count one batch."""
        self.of(batch.task, batch.dataset).update(prediction.probabilities, batch.target)
        self._count[batch.task, batch.dataset] += len(batch)

    def seen(self, *, device: torch.device, reduce: Callable[[Tensor], Tensor]) -> list[tuple[str, str]]:
        """Return the datasets of which any rank saw a sample; `reduce` sums a tensor over ranks."""
        counts = reduce(torch.tensor([self._count[place] for place in self._order], device=device))
        return [place for place, count in zip(self._order, counts.tolist(), strict=True) if count]

    def compute(self, seen: list[tuple[str, str]]) -> dict[str, float]:
        """Return <task>/<dataset>/<metric> for what was seen, and `score`: the mean over tasks of their main metric.

        A task's main metric is the mean over its datasets; one that is not a number (no volume spoke) is left out.
        Synchronises ranks: call it on all, with the same `seen`.
        """
        values: dict[str, float] = {}
        main: dict[str, list[float]] = {}
        for task, dataset in seen:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*was called before the ``update``.*")  # this rank saw no sample
                found = self.of(task, dataset).compute()
            for name, value in found.items():
                values[f"{task}/{dataset}/{name}"] = float(value)
            answer = values[f"{task}/{dataset}/{self.main_metric[task]}"]
            if math.isfinite(answer):
                main.setdefault(task, []).append(answer)
        if main:
            values["score"] = sum(sum(v) / len(v) for v in main.values()) / len(main)
        return values
