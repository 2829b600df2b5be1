"""Records what a training step did before a checkpoint may be written: the data consumed, the losses to log."""

from __future__ import annotations

import zlib
from typing import Any

import lightning.pytorch as pl
import torch

from inflate3d.sample import Batch

_CHECKED_STEPS = 8


class StepRecord(pl.Callback):
    """Counts consumed micro-batches in the data module, from the batch's own index, and writes the training rows.

    Lightning runs checkpoint callbacks last, so what is recorded here is in every checkpoint. In the first
    micro-batches of a start it also checks that all ranks hold the same one: with unlike datasets, sharded strategies
    abort or go silently wrong.
    """

    def __init__(self) -> None:
        self._checked = 0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Check the first micro-batches across ranks."""
        if trainer.world_size == 1 or self._checked >= _CHECKED_STEPS:
            return
        self._checked += 1
        named = zlib.crc32(batch.dataset.encode())
        mine = torch.tensor([batch.micro_batch, named], dtype=torch.int64, device=pl_module.device)
        highest = trainer.strategy.reduce(torch.cat([mine, -mine]), reduce_op="max").tolist()
        if highest[:2] != [-value for value in highest[2:]]:
            raise RuntimeError(
                f"rank {trainer.global_rank} holds micro-batch {batch.micro_batch} (dataset {batch.dataset!r}), others "
                f"hold {-highest[2]} to {highest[0]} or another dataset: ranks run different code, configs or shards"
            )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Count the micro-batch; after an optimiser step, let tasks follow it (move a teacher), and log."""
        trainer.datamodule.advance(batch.micro_batch)
        if not in_accumulation_window(trainer):
            pl_module.after_step()
            pl_module.log_train_means()


def in_accumulation_window(trainer: pl.Trainer) -> bool:
    """Whether gradients wait for more micro-batches, so that this is no moment to save."""
    return trainer.fit_loop._should_accumulate()
