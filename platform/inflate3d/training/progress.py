"""How far a run is: a bar at a terminal, plain lines now and then where nobody draws one (SLURM, a pipe, a file)."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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
        self._open()
        self._advance("train", trainer.global_step, trainer.max_steps)
        if trainer.global_step:
            self.print(f"going on from step {trainer.global_step} of {trainer.max_steps}")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the bar, or print a line when it is time."""
        if not self._enabled:
            return
        now = time.monotonic()
        self._advance("train", trainer.global_step, trainer.max_steps, _losses(pl_module.last_row))
        if self._bar is None and now - self._last_line >= self.every_seconds:
            self._last_line = now
            self.print(self._line(trainer, pl_module))

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Close the bar and print where the run stands."""
        self._close()
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
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self._bar = Progress(*columns, console=console)
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
        seconds, steps = time.monotonic() - self._started[0], trainer.global_step - self._started[1]
        rate = steps / max(seconds, 1e-9)
        left = f"{(trainer.max_steps - trainer.global_step) / rate:.0f} s left" if rate else ""
        losses = _losses(pl_module.last_row)
        parts = [f"step {trainer.global_step}/{trainer.max_steps}", losses, f"{rate:.2f} steps/s", left]
        return "  ".join(part for part in parts if part)


def _losses(row: dict[str, float]) -> str:
    shown = [("loss", row.get("train/loss")), ("lr", row.get("lr"))]
    return "  ".join(f"{name} {value:.4g}" for name, value in shown if value is not None)
