"""Tells of validations whose scores deceive: a class that is never found, and a choice that rests on few cases."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn

log = logging.getLogger(__name__)

FEW = 30  # cases of which one changes an accuracy by more than .03
NONE = 0.01  # a Dice below which a class is as good as not found
_REMEDY = "lower the learning rate, raise sample.foreground, or begin with a published decoder (model.start_heads)"


class ScoreWatch(pl.Callback):
    """Warns where a class has a Dice below .01 in two validations in a row, and where it does in the last one.

    A mean over classes hides that: half of a score may be one class that the net has given up. A class is told of once,
    and again if it comes and goes. And says once which datasets have so few validation cases that the best checkpoint
    is chosen by chance.
    """

    def __init__(self, few: int = FEW) -> None:
        super().__init__()
        self.few = few
        self._zero: dict[str, int] = {}
        self._told_few = False

    def state_dict(self) -> dict[str, Any]:
        """In how many validations on end each class was not found, and whether few cases were told of."""
        return {"zero": dict(self._zero), "told_few": self._told_few}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` said."""
        self._zero, self._told_few = dict(state_dict["zero"]), bool(state_dict["told_few"])

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Look at the scores of this validation."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        scores = {key: float(value) for key, value in trainer.callback_metrics.items()}
        line = "" if self._told_few else few_cases(pl_module, trainer.datamodule, self.few)
        self._told_few = True
        if line:
            _tell(trainer, line)
        for line in self.judge(scores):
            _tell(trainer, f"step {trainer.global_step}: {line}")

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Name the classes that the last validation did not find."""
        for line in self.left():
            _tell(trainer, line)

    def left(self) -> list[str]:
        """Return what is to be told of classes that were not found in the end."""
        return [
            f"{key} ends below {NONE:g}: the net finds none of this class, whatever the mean says. Train for more "
            f"steps, {_REMEDY}"
            for key, count in self._zero.items()
            if count
        ]

    def judge(self, scores: Mapping[str, float]) -> list[str]:
        """Take the scores of one validation, by metric; return what is to be told."""
        told = []
        for key, value in scores.items():
            _, _, metric = key.rpartition("/")
            if not key.startswith("val/") or not metric.startswith("dice_"):
                continue
            self._zero[key] = self._zero.get(key, 0) + 1 if value < NONE else 0
            if self._zero[key] == 2:
                told.append(
                    f"{key} is below {NONE:g} for the second time: the net finds none of this class. It may still "
                    f"come; if it does not by half of the run, {_REMEDY}"
                )
        return told


def _tell(trainer: Any, line: str) -> None:
    if trainer.is_global_zero:
        log.warning("%s", line)


def few_cases(module: Any, data: Any, few: int) -> str:
    """Return a line that names the datasets that count in val/score with fewer than `few` validation cases, or ""."""
    found = {}
    for name, manifest in data.manifests.items():
        scored = any(module.tasks[task].main_metric is not None for task in module.tasks_of[name])
        held = manifest.num_samples("val")
        count = min(held, data.datasets[name].max_eval_samples or held)
        if scored and 0 < count < few:
            found[name] = count
    if not found:
        return ""
    counts = ", ".join(f"{name} {count}" for name, count in found.items())
    least = min(found.values())
    return (
        f"few validation cases: {counts}. They choose the best checkpoint, and one of {least} moves a score by up to "
        f"{1 / least:.2g}; compare it with --checkpoint last"
    )
