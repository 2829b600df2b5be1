"""Predictions on held-out samples, scored by the task's own metrics, together and per sample."""

# N samples, K classes

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torchmetrics import MetricCollection

from inflate3d.evaluation.transfer.target import Target


@dataclass
class Answers:
    """The predictions of one arm on one split.

    total: each metric over all samples. per_sample: each metric on each sample alone, None if undefined (a class
    that is absent, an area under a curve). probabilities, target: for classification.
    """

    keys: list[str] = field(default_factory=list)
    total: dict[str, float] = field(default_factory=dict)
    per_sample: dict[str, list[float | None]] = field(default_factory=dict)
    probabilities: list[list[float]] | None = None
    target: list[int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; scores rounded to 5 digits."""
        return {
            "keys": self.keys,
            "total": {k: _plain(v) for k, v in self.total.items()},
            "per_sample": self.per_sample,
            **({"probabilities": self.probabilities, "target": self.target} if self.target is not None else {}),
        }


class AnswerBook:
    """Takes predictions batch by batch and returns the Answers."""

    def __init__(self, target: Target) -> None:
        self._all = target.metrics()
        self._one = self._all.clone()
        self._keeps = target.target.exclusive
        self.answers = Answers(probabilities=[] if self._keeps else None, target=[] if self._keeps else None)

    def add(self, keys: list[str], probabilities: Tensor, target: Tensor) -> None:
        """Count samples: answers (N, ...), values of the target (N, ...), on the CPU."""
        answers = self.answers
        self._all.update(probabilities, target)
        answers.keys += keys
        for i in range(len(keys)):
            self._one.reset()
            self._one.update(probabilities[i : i + 1], target[i : i + 1])
            for name, value in _compute(self._one).items():
                answers.per_sample.setdefault(name, []).append(_plain(value))
        if answers.probabilities is not None and answers.target is not None:
            # Full float32: if rounded, those of a confident probe tie, and the area under the curve changes.
            answers.probabilities += [[float(f"{p:.9g}") for p in row] for row in probabilities.tolist()]
            answers.target += target.tolist()

    def close(self) -> Answers:
        """Return the answers."""
        self.answers.total = _compute(self._all)
        return self.answers


def score(target: Target, probabilities: Tensor, truth: Tensor) -> float:
    """Return the chosen metric of predictions (N, K) of a classification."""
    metrics = target.metrics()
    metrics.update(probabilities, truth)
    return _compute(metrics)[target.metric]


def _compute(metrics: MetricCollection) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for classes that one sample cannot have
        return {name: float(value) for name, value in metrics.compute().items()}


def _plain(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None
