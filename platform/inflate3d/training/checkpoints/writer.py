"""Writes checkpoints during a fit: whole, only after an optimiser step, with the score of those very weights."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from inflate3d.errors import InputError
from inflate3d.training.checkpoints import store as store
from inflate3d.training.run.step_record import in_accumulation_window

_AGREE_EVERY_STEPS = 10


class CheckpointWriter(Checkpoint):
    """Saves after every validation, every `every_steps` optimiser steps, every `every_minutes`, and at the end.

    Gradients are not saved, so nothing is saved inside an accumulation window: a timer, a validation there or a call of
    `request()` sets a flag, and the save happens after the next optimiser step. Where a validation follows the step,
    the save waits for it, so that a checkpoint carries its own score and a resumed run skips no validation.
    Another callback that ends the run inside a window (trainer.max_time) is obeyed after it.
    Kept are the last `keep_last`, the `keep_best` of the highest `monitor`, and every step divisible by `keep_every`.
    """

    def __init__(
        self,
        every_steps: int | None = None,
        every_minutes: float | None = 30.0,
        keep_last: int = 2,
        keep_best: int = 1,
        keep_every: int | None = None,
        monitor: str = "val/score",
    ) -> None:
        super().__init__()
        for name, value in (("every_steps", every_steps), ("keep_last", keep_last), ("keep_every", keep_every)):
            if value is not None and value < 1:
                raise InputError(f"CheckpointWriter: {name} is {value}; it must be at least 1")
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.keep_every = keep_every
        self.monitor = monitor
        self._requested = False
        self._due = False
        self._ends = False
        self._saved_at = time.monotonic()

    def request(self) -> None:
        """Ask for a checkpoint after the next optimiser step; safe to call from a signal handler."""
        self._requested = True

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Check the intervals, and let the state's file be written where it belongs at once."""
        if stage != TrainerFn.FITTING:
            return
        interval, window = trainer.val_check_interval, trainer.accumulate_grad_batches
        if isinstance(interval, int) and interval % window and trainer.limit_val_batches:
            near = max(round(interval / window), 1) * window
            raise InputError(
                f"trainer.val_check_interval is {interval} micro-batches, accumulate_grad_batches is {window}: a "
                f"validation would fall between two optimiser steps; use a multiple, such as {near}"
            )
        if type(trainer.strategy._checkpoint_io) in (type(None), TorchCheckpointIO):
            trainer.strategy.checkpoint_io = InPlaceCheckpointIO()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the timer."""
        self._due, self._ends, self._saved_at = False, False, time.monotonic()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After an optimiser step: save if it is time or the run ends, and no validation follows."""
        step = trainer.global_step
        self._ends = self._ends or trainer.should_stop
        if in_accumulation_window(trainer):
            trainer.should_stop = False  # Lightning would end here, without the step
            return
        # At the last step too: makes Lightning validate it, whatever the interval.
        trainer.should_stop = self._ends or step == trainer.max_steps
        regular = trainer.should_stop or (self.every_steps is not None and step % self.every_steps == 0)
        self._due = self._due or regular or self._agreed(trainer)
        if self._due and not validation_follows(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Save the weights that were just scored."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._due = True
        if not in_accumulation_window(trainer):
            self.save(trainer, trainer.callback_metrics)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Save what is still due: there was nothing to validate on."""
        if self._due and not in_accumulation_window(trainer):
            self.save(trainer)

    def _agreed(self, trainer: pl.Trainer) -> bool:
        """Whether any rank's timer or flag asks for a save; ranks are asked every few steps only, as that waits."""
        wanted = self._requested
        if self.every_minutes is not None:
            wanted = wanted or time.monotonic() - self._saved_at >= 60 * self.every_minutes
        if trainer.world_size == 1:
            return wanted
        if trainer.global_step % _AGREE_EVERY_STEPS:
            return False
        return trainer.strategy.reduce_boolean_decision(wanted, all=False)

    def save(self, trainer: pl.Trainer, metrics: dict[str, Any] | None = None) -> None:
        """Save now, on all ranks together; never inside an accumulation window. metrics: of these very weights.

        TrainingFailure if a weight is not finite.
        """
        trainer.lightning_module.check_weights()  # type: ignore[operator]
        folder, step = store.checkpoints_folder(trainer.default_root_dir), trainer.global_step
        stage = self.monitor.partition("/")[0] + "/"
        scores = {k: float(v) for k, v in (metrics or {}).items() if k.startswith(stage)}
        finite = {k: v for k, v in scores.items() if math.isfinite(v)}
        if trainer.is_global_zero:
            store.begin(folder, step)
        trainer.strategy.barrier("checkpoint begins")
        with store.space_for(folder, step):
            trainer.save_checkpoint(store.unfinished(folder, step) / store.STATE, weights_only=False)
            if trainer.is_global_zero:
                for logger in trainer.loggers:
                    logger.save()  # rows up to this step reach the disk before the checkpoint does
                store.commit(folder, step, score=finite.get(self.monitor), metrics=finite)
        if trainer.is_global_zero:
            self._prune(folder, step)
        trainer.strategy.barrier("checkpoint is complete")
        self._due = self._requested = False
        self._saved_at = time.monotonic()

    def _prune(self, folder: Path, step: int) -> None:
        every = store.list_checkpoints(folder)
        for old in store.superseded(
            every, step=step, keep_last=self.keep_last, keep_best=self.keep_best, keep_every=self.keep_every
        ):
            store.remove(old)


class InPlaceCheckpointIO(TorchCheckpointIO):
    """Writes a state straight to its path: Lightning's own goes through memory and the system's temporary folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the state; the folder around it is what makes it whole or void."""
        torch.save(checkpoint, path)


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether Lightning validates right after this micro-batch."""
    if not trainer.enable_validation:
        return False
    every = trainer.val_check_batch
    return trainer.should_stop or (every is not None and (trainer.fit_loop.total_batch_idx + 1) % every == 0)
