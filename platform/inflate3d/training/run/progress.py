"""How far a run is: a bar at a terminal, plain lines now and then where nobody draws one (SLURM, a pipe, a file)."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from inflate3d.durations import duration
from inflate3d.training.run.loader import seconds_waited
from inflate3d.training.run.metrics_logger import MetricsCSV
from inflate3d.training.run.step_meter import StepMeter
from inflate3d.training.run.step_record import in_accumulation_window


class RunProgress(ProgressBar):
    """Counts optimiser steps up to trainer.max_steps, and prints a line after every validation."""

    def __init__(self, every_seconds: float = 30.0) -> None:
        """every_seconds: between two plain lines."""
        super().__init__()
        self.every_seconds = every_seconds
        self._enabled = True
        self._bar: Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._started = (0.0, 0)
        self._last_line = 0.0
        self._line_meter, self._log_meter = StepMeter(), StepMeter()

    def enable(self) -> None:
        """Lightning asks for it."""
        self._enabled = True

    def disable(self) -> None:
        """Be silent: on every rank but the first."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print without tearing the bar."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.console.print(*args, highlight=False, markup=False, soft_wrap=True)
        else:
            print(*args, **kwargs, flush=True)

    # ------------------------------------------------------------------------------------------------ training

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Open the bar."""
        self._started = (time.monotonic(), trainer.global_step)
        self._last_line = time.monotonic()
        for meter in (self._line_meter, self._log_meter):
            meter.start(step=trainer.global_step, waited=seconds_waited(trainer))
        self._open()
        self._advance("train", trainer.global_step, trainer.max_steps)
        if trainer.global_step:
            self.print(f"going on from step {trainer.global_step} of {trainer.max_steps}")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the bar, or print a line when it is time."""
        if not self._enabled:
            return
        for meter in (self._line_meter, self._log_meter):
            meter.count(len(batch) * trainer.world_size)
        self._advance("train", trainer.global_step, trainer.max_steps, _losses(pl_module.last_row))
        if in_accumulation_window(trainer):
            return
        if trainer.log_every_n_steps and trainer.global_step % trainer.log_every_n_steps == 0:
            self._log(trainer, pl_module)
        now = time.monotonic()
        if now - self._last_line >= self.every_seconds:
            self._last_line = now
            line = self._line(trainer, pl_module)
            if self._bar is None:
                self.print(line)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Close the bar and print where the run stands."""
        self._close()
        if self._enabled:
            self.print(self._line(trainer, pl_module))

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Give the terminal back."""
        self._close()

    # ------------------------------------------------------------------------------------------------ evaluation

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Move the second bar."""
        total = trainer.num_val_batches
        self._advance("validate", self._tasks.get("validated", 0) + 1, sum(total) if isinstance(total, list) else total)
        self._tasks["validated"] = self._tasks.get("validated", 0) + 1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Print the score and each dataset's metrics."""
        if self._bar is not None and "validate" in self._tasks:
            self._bar.remove_task(self._tasks.pop("validate"))
        self._tasks.pop("validated", None)
        found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        values = [
            f"{k.removeprefix('val/')} {v:.4f}" for k, v in sorted(found.items(), key=lambda kv: kv[0] != "val/score")
        ]
        self.print(f"step {trainer.global_step}: validation  " + "  ".join(values))

    # ------------------------------------------------------------------------------------------------ drawing

    def _open(self) -> None:
        console = Console(file=sys.stdout)
        if not self._enabled or not console.is_terminal:
            return
        columns = (
            TextColumn("{task.description}", table_column=Column(min_width=8, no_wrap=True)),
            BarColumn(bar_width=16, table_column=Column(min_width=16)),
            MofNCompleteColumn(table_column=Column(min_width=9, no_wrap=True)),
            TimeRemainingColumn(table_column=Column(min_width=7, no_wrap=True)),
            TextColumn("left", table_column=Column(min_width=4, no_wrap=True)),
            # What a narrow terminal has no room for is cut off here, never the bar, the count or the time.
            TextColumn("{task.fields[text]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        )
        self._bar = Progress(*columns, console=console, expand=True)
        self._bar.start()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._tasks.clear()

    def _advance(self, name: str, done: int, total: float, text: str = "") -> None:
        if self._bar is None:
            return
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(name, total=total, text="")
        self._bar.update(self._tasks[name], completed=done, text=text)

    def _line(self, trainer: pl.Trainer, pl_module: Any) -> str:
        speed = self._line_meter.read(step=trainer.global_step, waited=seconds_waited(trainer), device=pl_module.device)
        seconds, steps = time.monotonic() - self._started[0], trainer.global_step - self._started[1]
        left = (trainer.max_steps - trainer.global_step) * seconds / steps if steps else math.nan
        parts = [f"step {trainer.global_step}/{trainer.max_steps}", _losses(pl_module.last_row)]
        if speed.steps:
            parts += [f"{speed.samples_per_second:.3g} samples/s", f"data wait {speed.data_wait:.0%}"]
        parts += [f"memory {speed.memory_gb:.1f} GB", f"{duration(left)} left" if steps else ""]
        return "  ".join(part for part in parts if part)

    def _log(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Give the speed to the loggers; not to metrics.csv, whose rows a resumed run repeats byte for byte."""
        speed = self._log_meter.read(step=trainer.global_step, waited=seconds_waited(trainer), device=pl_module.device)
        row = {
            "speed/samples_per_second": speed.samples_per_second,
            "speed/data_wait": speed.data_wait,
            "speed/memory_gb": speed.memory_gb,
        }
        for logger in trainer.loggers:
            if not isinstance(logger, MetricsCSV):
                logger.log_metrics(row, step=trainer.global_step)


def _losses(row: dict[str, float]) -> str:
    """The loss, that of each dataset (of its tasks, where it serves several), and the learning rate."""
    shown = [("loss", row.get("train/loss"))]
    each = [(key.split("/"), v) for key, v in row.items() if key.count("/") == 3 and key.endswith("/loss")]
    names = [dataset for (_, _, dataset, _), _ in each]
    if len(each) > 1:
        shown += [(d if names.count(d) == 1 else f"{d} {task}", value) for (_, task, d, _), value in each]
    shown.append(("lr", row.get("lr")))
    return "  ".join(f"{name} {value:.4g}" for name, value in shown if value is not None)
