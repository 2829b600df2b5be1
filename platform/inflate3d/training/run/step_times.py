"""What a training micro-batch of each dataset takes on this device: time and memory, for `platform doctor`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch

from inflate3d.training.run.step_meter import peak_memory_gb, reset_peak_memory


class StepTimes(pl.Callback):
    """Times `repeats` micro-batches of each dataset after its first, and then stops the trainer.

    From the moment that a batch is there until its backward pass, and the optimiser step if one follows, are done on
    the device. The first of each dataset, in which memory is allocated and kernels are chosen, is not counted.
    """

    def __init__(self, datasets: Iterable[str], repeats: int) -> None:
        self.repeats = repeats
        self.seconds: dict[str, list[float]] = {name: [] for name in datasets}
        self.memory_gb = dict.fromkeys(self.seconds, 0.0)
        self._start = 0.0

    def milliseconds(self, dataset: str) -> float:
        """Return the mean of a dataset's micro-batches, so that the optimiser's steps are spread over them."""
        counted = self.seconds[dataset][1:]
        return 1e3 * sum(counted) / len(counted)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin."""
        reset_peak_memory(pl_module.device)
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note what it took; stop when every dataset has been seen often enough."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.seconds[batch.dataset].append(time.perf_counter() - self._start)
        self.memory_gb[batch.dataset] = max(self.memory_gb[batch.dataset], peak_memory_gb(pl_module.device))
        trainer.should_stop = min(map(len, self.seconds.values())) > self.repeats
