"""Records what a training step did before a checkpoint may be written: the data consumed, the losses to log."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch

from inflate3d.sample import Batch

_CHECKED_STEPS = 8


class StepRecord(pl.Callback):
    """Counts consumed micro-batches in the data module, from the batch's own index, and writes the training rows.

    Lightning runs checkpoint callbacks last, so what is recorded here is in every checkpoint. In the first
    micro-batches of a start it also checks that all ranks hold the same one: with unlike tasks, sharded strategies
    abort or go silently wrong.
    """

    def __init__(self) -> None:
        self._checked = 0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Check the first micro-batches across ranks."""
        if trainer.world_size == 1 or self._checked >= _CHECKED_STEPS:
            return
        self._checked += 1
        index = torch.tensor([batch.micro_batch, -batch.micro_batch], device=pl_module.device)
        highest, lowest = trainer.strategy.reduce(index, reduce_op="max").tolist()
        if highest != -lowest:
            raise RuntimeError(
                f"ranks hold micro-batches {-lowest} and {highest} at once; the order depends on the rank"
            )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Count the micro-batch; after an optimiser step, log."""
        trainer.datamodule.advance(batch.micro_batch)
        if not in_accumulation_window(trainer):
            pl_module.log_train_means()


def in_accumulation_window(trainer: pl.Trainer) -> bool:
    """Whether gradients wait for more micro-batches, so that this is no moment to save."""
    return trainer.fit_loop._should_accumulate()
