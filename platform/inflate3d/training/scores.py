"""What is measured of every task and dataset in evaluation, and the one score that chooses the best checkpoint."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection

from inflate3d.contracts import AbstractTask

Place = tuple[str, str]


class Scores(nn.Module):
    """Metrics by task and dataset, and of tasks without a main metric what their own step measures.

    A module, so that they follow to the device; none of it is saved.
    """

    def __init__(self, tasks: Mapping[str, AbstractTask]) -> None:
        super().__init__()
        self.main_metric = {name: task.main_metric for name, task in tasks.items()}
        self._order = [(name, d) for name, task in tasks.items() for d in task.datasets]
        self.metrics = nn.ModuleDict({name: nn.ModuleDict() for name in tasks})
        self.steps = nn.ModuleDict({name: nn.ModuleDict() for name in tasks})
        for name, dataset in self._order:
            if (metrics := tasks[name].metrics(dataset)) is not None:
                self.metrics[name][dataset] = metrics  # type: ignore[index, operator]
            if tasks[name].main_metric is None:
                means: dict[str, Metric | MetricCollection] = {key: MeanMetric() for key in tasks[name].measured}
                self.steps[name][dataset] = MetricCollection(means, compute_groups=False)  # type: ignore[index, operator]
        self._count = dict.fromkeys(self._order, 0)

    def has_metrics(self, task: str, dataset: str) -> bool:
        """Whether predictions are measured."""
        return dataset in self.metrics[task]  # type: ignore[operator]

    def has_step(self, task: str, dataset: str) -> bool:
        """Whether the task's own step is measured."""
        return dataset in self.steps[task]  # type: ignore[operator]

    def reset(self) -> None:
        """Forget everything."""
        for task, dataset in self._order:
            for measured in self._of(task, dataset):
                measured.reset()
        self._count = dict.fromkeys(self._order, 0)

    def update(self, task: str, dataset: str, prediction: Tensor, value: Tensor | None) -> None:
        """Count the predictions of a batch; value: of the task's target, None where it has none."""
        self.metrics[task][dataset].update(prediction, value)  # type: ignore[index, operator]

    def add_step(self, task: str, dataset: str, values: Mapping[str, Tensor], samples: int) -> None:
        """Count what a task's step gave of a batch."""
        for name, mean in self.steps[task][dataset].items():  # type: ignore[index, operator]
            mean.update(values[name], samples)

    def count(self, task: str, dataset: str, samples: int) -> None:
        """Note that these samples were seen."""
        self._count[task, dataset] += samples

    def seen(self, *, device: torch.device, reduce: Callable[[Tensor], Tensor]) -> list[Place]:
        """Return the datasets of which any rank saw a sample; `reduce` sums a tensor over ranks."""
        counts = reduce(torch.tensor([self._count[place] for place in self._order], device=device))
        return [place for place, count in zip(self._order, counts.tolist(), strict=True) if count]

    def compute(self, seen: list[Place]) -> dict[str, float]:
        """Return <task>/<dataset>/<metric> for what was seen, and `score`: the mean over tasks of their main metric.

        A task's main metric is the mean over its datasets; one that is not a number (no volume spoke) is left out.
        Synchronises ranks: call it on all, with the same `seen`.
        """
        values: dict[str, float] = {}
        main: dict[str, list[float]] = {}
        for task, dataset in seen:
            for measured in self._of(task, dataset):
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", ".*was called before the ``update``.*")  # this rank saw no sample
                    found = measured.compute()
                for name, value in found.items():
                    values[f"{task}/{dataset}/{name}"] = float(value)
            answer = values.get(f"{task}/{dataset}/{self.main_metric[task]}", math.nan)
            if math.isfinite(answer):
                main.setdefault(task, []).append(answer)
        if main:
            values["score"] = sum(sum(v) / len(v) for v in main.values()) / len(main)
        return values

    def _of(self, task: str, dataset: str) -> list[MetricCollection]:
        groups: tuple[nn.ModuleDict, nn.ModuleDict] = (self.metrics[task], self.steps[task])  # type: ignore[assignment]
        return [group[dataset] for group in groups if dataset in group]  # type: ignore[misc]
