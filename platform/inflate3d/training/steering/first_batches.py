"""One batch of every dataset through its tasks before the first step, so that a mistake in task 7 shows at once."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from inflate3d.contracts import SupervisedTask
from inflate3d.data.stream.stream_error import StreamError
from inflate3d.errors import InputError
from inflate3d.remote.outcomes import Unreachable
from inflate3d.sample import Batch
from inflate3d.seeds import mix
from inflate3d.training.steering.stop import end_by_fault
from inflate3d.training.step_encoder import StepEncoder
from inflate3d.training.weighting import constant_loss

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
                batches = _load(trainer, name, _BATCHES_FOR_CONSTANT if wants_constant else 1)
                batches = [batch.to(pl_module.device) for batch in batches]
                check_batch(pl_module, batches[0])
                for task in pl_module.tasks_of[name] if wants_constant else ():
                    pl_module.constant_losses[f"{task}/{name}"] = _constant(trainer, pl_module.tasks[task], batches)
        finally:
            for module, training in modes.items():
                module.training = training


@torch.no_grad()
def check_batch(module: Any, batch: Batch) -> None:
    """Compute the losses of a batch; the error of whatever fails names dataset, task and keys."""
    card, samples = module.cards[batch.dataset], f"samples {', '.join(batch.keys[:4])}"
    where = f"first batch of dataset {batch.dataset!r} ({samples})"
    for name, view in batch.views.items():
        if not bool(torch.isfinite(view).all()):
            raise InputError(f"{where}: view {name!r} holds values that are not finite; see: platform shards check")
    for name, value in batch.targets.items():
        try:
            card.target(name).check_batch(value)
        except InputError as error:
            raise InputError(f"{where}: target {name!r}: {error}") from error
    encoder = StepEncoder(module.backbone)
    for task in module.tasks_of[batch.dataset]:
        where = f"first batch of dataset {batch.dataset!r} (task {task!r}, {samples})"
        try:
            loss = module.tasks[task].step(encoder, batch, seed=mix(module.seed, "first batch", task))["loss"]
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        except Exception as error:
            shape = tuple(batch.image.shape)
            raise RuntimeError(f"{where}: images {shape} fail with {type(error).__name__}: {error}") from error
        if not bool(torch.isfinite(loss)):
            raise RuntimeError(f"{where}: the loss is {float(loss)} before the first step")


def _load(trainer: Any, dataset: str, count: int) -> list[Batch]:
    """Load the first batches of a dataset; where a rank cannot, all end."""
    fault, batches = None, []
    try:
        batches = trainer.datamodule.first_batches(dataset, count)
    except (Unreachable, StreamError) as error:
        fault = error
    if trainer.strategy.reduce_boolean_decision(fault is not None, all=False):
        end_by_fault(trainer, fault, "nothing is trained yet")
    return batches


def _constant(trainer: pl.Trainer, task: SupervisedTask, batches: list[Batch]) -> float:
    dataset = batches[0].dataset
    values = [task.value(batch) for batch in batches]
    tally = torch.stack([task.target_of(dataset).tally(value) for value in values]).sum(0)
    tally = _reduced(trainer, tally)
    losses = torch.stack([constant_loss(task, dataset, tally, value).double() for value in values])
    return float(_reduced(trainer, losses).mean() / trainer.world_size)


def _reduced(trainer: pl.Trainer, value: Tensor) -> Tensor:
    total: Any = trainer.strategy.reduce(value, reduce_op="sum")
    return total
