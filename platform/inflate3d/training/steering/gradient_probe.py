"""Do tasks help or hurt each other? Gradient norms and cosines of the tasks on one shared layer."""

from __future__ import annotations

import itertools
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from inflate3d.errors import InputError, unknown_name
from inflate3d.sample import Batch

ENTRY = "gradient_probe"


class GradientProbe(pl.Callback):
    """Logs gradient/<task>/norm and gradient/cosine/<task>~<other> on one layer of the backbone.

    Every `every_steps` optimiser steps it listens until each task has had `batches` micro-batches, and compares the
    mean gradients, loss weights included: what the optimiser would see of that task alone. A cosine below zero means
    that two tasks pull the layer apart. Tasks of one dataset come together and count as one, <task>+<other>. Nothing of
    the training changes.
    """

    def __init__(self, layer: str | None = None, every_steps: int = 100, batches: int = 1) -> None:
        """layer: name of a module of the backbone's net with a weight ("layer4.1.conv2"); null: the last one."""
        for name, value in (("every_steps", every_steps), ("batches", batches)):
            if value < 1:
                raise InputError(f"GradientProbe: {name} is {value}; it must be at least 1")
        self.layer, self.every_steps, self.batches = layer, every_steps, batches
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._task: str | None = None
        self._listens = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Find the layer and listen to its weight."""
        weight = find_weight(pl_module.backbone.net, self.layer)
        self._handle = weight.register_hook(self._take)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Stop listening."""
        self._handle.remove()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Open a round when it is time, and note whose gradient comes next."""
        if not self._listens and batch_idx % trainer.accumulate_grad_batches == 0:
            self._listens = trainer.global_step % self.every_steps == 0
            self._sums, self._counts = {}, {}
        self._task = "+".join(pl_module.tasks_of[batch.dataset]) if self._listens else None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Close the round when every task has spoken, and log."""
        self._task = None
        names = dict.fromkeys("+".join(tasks) for tasks in pl_module.tasks_of.values())
        if self._listens and all(self._counts.get(name, 0) >= self.batches for name in names):
            self._listens = False
            means = {name: self._mean(trainer, name) for name in names}
            row = compare(means)
            for logger in trainer.loggers:
                logger.log_metrics(row, step=trainer.global_step)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep a round that is open, as the ranks' mean, so that its row comes after a resume too."""
        if self._listens:
            sums = {name: self._over_ranks(trainer, total).cpu() for name, total in self._sums.items()}
            checkpoint[ENTRY] = {"sums": sums, "counts": dict(self._counts)}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Go on with the round."""
        self._listens = ENTRY in checkpoint
        if self._listens:
            self._sums = {name: total.to(pl_module.device) for name, total in checkpoint[ENTRY]["sums"].items()}
            self._counts = dict(checkpoint[ENTRY]["counts"])

    def _take(self, gradient: Tensor) -> None:
        if (name := self._task) is not None and self._counts.get(name, 0) < self.batches:
            flat = gradient.detach().float().flatten()
            self._sums[name] = self._sums[name] + flat if name in self._sums else flat.clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def _mean(self, trainer: Any, name: str) -> Tensor:
        mean = self._sums[name] * (trainer.accumulate_grad_batches / self._counts[name])  # the loss was divided by it
        return self._over_ranks(trainer, mean)

    @staticmethod
    def _over_ranks(trainer: Any, value: Tensor) -> Tensor:
        mean: Tensor = value if trainer.world_size == 1 else trainer.strategy.reduce(value.clone(), reduce_op="mean")
        return mean


def find_weight(net: nn.Module, layer: str | None) -> nn.Parameter:
    """Return the weight of a named layer; of None, the last matrix or kernel. InputError with close names."""
    named = {name.removesuffix(".weight"): p for name, p in net.named_parameters() if name.endswith(".weight")}
    if layer is None:
        return [p for p in named.values() if getattr(p, "ds_shape", p.shape)[1:]][-1]
    if layer not in named:
        raise unknown_name("layer", layer, named, where="GradientProbe: layer")
    return named[layer]


def compare(gradients: dict[str, Tensor]) -> dict[str, float]:
    """Return the norm of each gradient and the cosine of each pair; nan where one is zero."""
    norms = {name: gradient.norm() for name, gradient in gradients.items()}
    row = {f"gradient/{name}/norm": float(norm) for name, norm in norms.items()}
    for a, b in itertools.combinations(gradients, 2):
        row[f"gradient/cosine/{a}~{b}"] = float(torch.dot(gradients[a], gradients[b]) / (norms[a] * norms[b]))
    return row
