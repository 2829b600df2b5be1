"""How far a run is, in a file: `state.json` of the run folder, written now and then, which `platform status` reads."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from typing import Any

import lightning.pytorch as pl
import torch

from inflate3d.errors import InputError
from inflate3d.remote.outcomes import Unreachable
from inflate3d.training.run.folder import write_state
from inflate3d.training.run.loader import seconds_waited
from inflate3d.training.run.step_meter import StepMeter
from inflate3d.training.steering.stop_signals import RunStopped

log = logging.getLogger(__name__)


class RunState(pl.Callback):
    """Writes step, loss, speed and the share of time spent waiting for data, in the first process, every few seconds.

    `phase` is training, validating, finished, stopped (by a signal; it can go on) or failed. Speed and data wait are of
    the last interval that trained, whatever validations and checkpoints took.
    """

    def __init__(self, every_seconds: float = 10.0) -> None:
        self.every_seconds = every_seconds
        self._meter, self._since = StepMeter(), (0.0, 0)
        self._rates: dict[str, float] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin."""
        self._restart_clock(trainer)
        self._write(trainer, pl_module, "training")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write when it is time."""
        self._meter.count(len(batch) * trainer.world_size)
        if time.monotonic() - self._since[0] >= self.every_seconds and trainer.global_step > self._since[1]:
            self._measure(trainer, pl_module.device)
            self._write(trainer, pl_module, "training")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say that it validates."""
        if trainer.state.fn == "fit":
            self._measure(trainer, pl_module.device)
            self._write(trainer, pl_module, "validating")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Training goes on."""
        if trainer.state.fn == "fit":
            self._restart_clock(trainer)
            self._write(trainer, pl_module, "training")

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say that the run is over, or that it ended early."""
        self._measure(trainer, pl_module.device)
        self._write(trainer, pl_module, "finished" if trainer.global_step >= trainer.max_steps else "stopped")

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Say how it ended."""
        went_well = isinstance(exception, RunStopped | KeyboardInterrupt | Unreachable)
        self._write(trainer, pl_module, "stopped" if went_well else "failed")

    def _measure(self, trainer: pl.Trainer, device: torch.device) -> None:
        speed = self._meter.read(step=trainer.global_step, waited=seconds_waited(trainer), device=device)
        if speed.steps:
            self._rates = {
                "steps_per_s": speed.steps_per_second,
                "samples_per_s": speed.samples_per_second,
                "data_wait": speed.data_wait,
                "memory_gb": speed.memory_gb,
            }
        self._since = (time.monotonic(), trainer.global_step)

    def _restart_clock(self, trainer: pl.Trainer) -> None:
        self._meter.start(step=trainer.global_step, waited=seconds_waited(trainer))
        self._since = (time.monotonic(), trainer.global_step)

    def _write(self, trainer: pl.Trainer, pl_module: Any, phase: str) -> None:
        if not trainer.is_global_zero:
            return
        content = {
            "time": time.time(),
            "phase": phase,
            "step": trainer.global_step,
            "max_steps": trainer.max_steps,
            "world_size": trainer.world_size,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "losses": pl_module.last_row,
            **{name: rate for name, rate in self._rates.items() if math.isfinite(rate)},
        }
        try:
            write_state(trainer.default_root_dir, content)
        except (OSError, InputError) as error:  # a full disk is for the checkpoint to report, whose files matter
            log.warning("the run's state could not be written: %s", error)
