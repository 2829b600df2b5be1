"""An exponential moving average of the weights that survives every strategy's checkpoints.

Lightning's own keeps its averages where DeepSpeed drops them. This one lives in an entry of the checkpoint, `ema`;
validation scores the averaged weights, and publishing and prediction take them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from inflate3d.errors import InputError
from inflate3d.training.run.step_record import in_accumulation_window
from inflate3d.training.strategies.whole_weights import is_sharded

ENTRY = "ema"


class EMA(pl.Callback):
    """Averages weights and float buffers after every optimiser step: a <- d a + (1 - d) w, all on the device.

    d grows from 0 to `decay` as min(decay, (1 + n) / (10 + n)) after n steps, so that the start is forgotten. Whole
    numbers are copied. Refused with ZeRO-3 and FSDP, where no rank holds a whole weight.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 < decay < 1:
            raise InputError(f"EMA: decay is {decay}; it must lie between 0 and 1")
        self.decay = decay
        self.updates = 0
        self.average: dict[str, Tensor] = {}
        self._own: dict[str, Tensor] = {}

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse strategies under which there is nothing whole to average."""
        if is_sharded(trainer.strategy):
            name = type(trainer.strategy).__name__
            raise InputError(f"EMA cannot average weights that are sharded ({name}); use DDP or DeepSpeed stage 1 or 2")

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begin with the weights as they are, or go on."""
        state = pl_module.state_dict()
        self.average = {k: self.average.get(k, v).detach().to(v.device).clone() for k, v in state.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """Move the average after an optimiser step."""
        if in_accumulation_window(trainer):
            return
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in pl_module.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value.to(self.average[name].dtype), 1 - decay)
            else:
                self.average[name].copy_(value)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Lend the module the average."""
        if self.average and not self._own:
            self._own = {k: v.detach().clone() for k, v in pl_module.state_dict().items()}
            _write(pl_module, self.average)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Give the module its own weights back, before a checkpoint is written."""
        if self._own:
            _write(pl_module, self._own)
            self._own = {}

    on_test_start, on_test_end = on_validation_start, on_validation_end

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Put the average into the checkpoint, on the CPU; and the module's own weights, if they are out on loan."""
        weights = {name: value.cpu() for name, value in self.average.items()} if trainer.is_global_zero else {}
        if self._own and trainer.is_global_zero:  # a stop within a validation
            checkpoint["state_dict"].update({name: value.cpu() for name, value in self._own.items()})
        checkpoint[ENTRY] = {"decay": self.decay, "updates": self.updates, "weights": weights}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Go on with the average of a checkpoint; one without starts from its weights."""
        if ENTRY in checkpoint:
            self.updates, self.average = checkpoint[ENTRY]["updates"], dict(checkpoint[ENTRY]["weights"])


def best_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a loaded checkpoint that were scored: the average where there is one, else the last."""
    averaged: dict[str, Tensor] = checkpoint.get(ENTRY, {}).get("weights", {})
    own: dict[str, Tensor] = checkpoint["state_dict"]
    return averaged or own


@torch.no_grad()
def _write(module: torch.nn.Module, values: dict[str, Tensor]) -> None:
    for name, value in module.state_dict().items():
        value.copy_(values[name])  # in place: ZeRO and DDP hold views of these very tensors
