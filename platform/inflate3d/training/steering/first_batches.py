"""One batch of every dataset through its task before the first step, so that a mistake in task 7 shows at once."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from inflate3d.errors import InputError
from inflate3d.sample import Batch
from inflate3d.training.weighting import class_counts, constant_loss

_BATCHES_FOR_CONSTANT = 4


class FirstBatches(pl.Callback):
    """Loads the first batch of every dataset and computes its loss, without gradients; weights and norms stay.

    Runs once, before step 1. For `loss_weighting: constant` it also measures what a constant answer costs, on the first
    four batches of each dataset, and hands it to the module.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Check every dataset and task; InputError or RuntimeError names both and the sample keys."""
        if trainer.global_step:
            return
        wants_constant = pl_module.loss_weighting == "constant"
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        modes = {module: module.training for module in pl_module.modules()}
        pl_module.eval()
        try:
            for name in datamodule.datasets:
                batches = datamodule.first_batches(name, _BATCHES_FOR_CONSTANT if wants_constant else 1)
                batches = [batch.to(pl_module.device) for batch in batches]
                features = check_batch(pl_module, batches[0])
                if wants_constant:
                    pl_module.constant_losses[name] = _constant(trainer, pl_module, features, batches)
        finally:
            for module, training in modes.items():
                module.training = training


@torch.no_grad()
def check_batch(module: Any, batch: Batch) -> Any:
    """Compute the loss of a batch and return the features; the error of whatever fails names dataset, task and keys."""
    where = f"first batch of dataset {batch.dataset!r} (task {batch.task!r}, samples {', '.join(batch.keys[:4])})"
    classes = module.cards[batch.dataset].classes
    low, high = int(batch.target.min()), int(batch.target.max())
    if low < 0 or high >= len(classes):
        raise InputError(f"{where}: targets from {low} to {high}; the shards name {len(classes)} classes {classes}")
    if not bool(torch.isfinite(batch.image).all()):
        raise InputError(f"{where}: the images hold values that are not finite; see: platform shards check")
    try:
        features = module.backbone(batch.image, domain=batch.dataset)
        loss = module.tasks[batch.task].loss(features, batch)["loss"]
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except Exception as error:
        shape = tuple(batch.image.shape)
        raise RuntimeError(f"{where}: images {shape} fail with {type(error).__name__}: {error}") from error
    if not bool(torch.isfinite(loss)):
        raise RuntimeError(f"{where}: the loss is {float(loss)} before the first step")
    return features


def _constant(trainer: pl.Trainer, module: Any, features: Any, batches: list[Batch]) -> float:
    card, task = module.cards[batches[0].dataset], module.tasks[batches[0].task]
    counts = torch.stack([class_counts(batch, len(card.classes)) for batch in batches]).sum(0)
    counts = _reduced(trainer, counts)
    losses = torch.stack([constant_loss(task, counts, features, batch).double() for batch in batches])
    return float(_reduced(trainer, losses).mean() / trainer.world_size)


def _reduced(trainer: pl.Trainer, value: Tensor) -> Tensor:
    total: Any = trainer.strategy.reduce(value, reduce_op="sum")
    return total
