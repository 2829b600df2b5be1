"""What a run of this platform asks of Lightning's Trainer: exact resume rests on some of these settings."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch

from inflate3d.training.checkpoints.writer import CheckpointWriter
from inflate3d.training.device import DeviceDefaults
from inflate3d.training.run.progress import RunProgress
from inflate3d.training.run.record import RunRecord
from inflate3d.training.run.state import RunState
from inflate3d.training.run.step_record import StepRecord
from inflate3d.training.steering.first_batches import FirstBatches
from inflate3d.training.steering.score_watch import ScoreWatch
from inflate3d.training.steering.stop import StopOnSignal


def trainer_defaults() -> dict[str, Any]:
    """Return the Trainer's arguments that a config may leave out; `callbacks` are not among them.

    Epochs have no meaning on endless streams: max_steps counts optimiser steps, val_check_interval micro-batches.
    """
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return {
        "precision": "bf16-mixed" if has_bf16 else "32-true",
        "use_distributed_sampler": False,  # our streams deal to ranks themselves
        "num_sanity_val_steps": 0,  # a sanity check would move nothing but time, on every resume
        "check_val_every_n_epoch": None,
        "max_epochs": -1,
        "logger": False,  # metrics.csv is always written; this adds others
        "enable_model_summary": False,
        "log_every_n_steps": 10,
        "gradient_clip_val": 1.0,
    }


def default_callbacks() -> list[pl.Callback]:
    """Return what every run has. Put a CheckpointWriter or RunProgress of your own in place of the one here."""
    return [
        DeviceDefaults(),
        FirstBatches(),
        StepRecord(),
        RunRecord(),
        RunProgress(),
        RunState(),
        ScoreWatch(),
        StopOnSignal(),
        CheckpointWriter(),
    ]


def with_default_callbacks(callbacks: list[pl.Callback], *, progress_bar: bool = True) -> list[pl.Callback]:
    """Return the given callbacks and those defaults of whose class none is given; the bar on request alone."""
    unwanted = {type(callback) for callback in callbacks} | ({RunProgress} if not progress_bar else set())
    return [*(c for c in default_callbacks() if type(c) not in unwanted), *callbacks]
