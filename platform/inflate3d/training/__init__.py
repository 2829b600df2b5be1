"""Training: the module, the data module, checkpoints, the run's folder. Names are imported on first use (PEP 562)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inflate3d.training.checkpoints.ema import EMA as EMA
    from inflate3d.training.checkpoints.store import Checkpoint as Checkpoint
    from inflate3d.training.checkpoints.store import find_checkpoint as find_checkpoint
    from inflate3d.training.checkpoints.writer import CheckpointWriter as CheckpointWriter
    from inflate3d.training.datamodule import DataModule as DataModule
    from inflate3d.training.datamodule import DatasetConfig as DatasetConfig
    from inflate3d.training.defaults import default_callbacks as default_callbacks
    from inflate3d.training.defaults import trainer_defaults as trainer_defaults
    from inflate3d.training.defaults import with_default_callbacks as with_default_callbacks
    from inflate3d.training.device import Trainer as Trainer
    from inflate3d.training.module import MultiTaskModule as MultiTaskModule
    from inflate3d.training.run.folder import check_same_config as check_same_config
    from inflate3d.training.run.folder import write_config as write_config
    from inflate3d.training.steering.first_batches import FirstBatches as FirstBatches
    from inflate3d.training.steering.gradient_probe import GradientProbe as GradientProbe
    from inflate3d.training.strategies.deepspeed import DeepSpeed as DeepSpeed

_NAMES = {
    "checkpoints.store": ("Checkpoint", "find_checkpoint"),
    "checkpoints.writer": ("CheckpointWriter",),
    "datamodule": ("DataModule", "DatasetConfig"),
    "defaults": ("default_callbacks", "trainer_defaults", "with_default_callbacks"),
    "device": ("Trainer",),
    "strategies.deepspeed": ("DeepSpeed",),
    "checkpoints.ema": ("EMA",),
    "steering.first_batches": ("FirstBatches",),
    "steering.gradient_probe": ("GradientProbe",),
    "module": ("MultiTaskModule",),
    "run.folder": ("check_same_config", "write_config"),
}
_HOME = {name: f"inflate3d.training.{module}" for module, names in _NAMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'inflate3d.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
