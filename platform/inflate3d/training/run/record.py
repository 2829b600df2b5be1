"""Keeps a run's folder during a fit: environment.json, folds, and metrics.csv that goes on from the checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn

from inflate3d.training.run import folder as run_folder
from inflate3d.training.run.metrics_csv import drop_rows_after
from inflate3d.training.run.metrics_logger import MetricsCSV

log = logging.getLogger(__name__)


class RunRecord(pl.Callback):
    """Writes metrics.csv beside whatever other loggers there are, and adds each start to environment.json."""

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Join the loggers; note the environment."""
        if stage != TrainerFn.FITTING:
            return
        root = Path(trainer.default_root_dir)
        if not any(isinstance(logger, MetricsCSV) for logger in trainer.loggers):
            csv = MetricsCSV(root / run_folder.METRICS, global_step=lambda: trainer.global_step)
            trainer.loggers = [*trainer.loggers, csv]
        if trainer.is_global_zero:
            run_folder.record_environment(root, device=device_name(trainer.strategy.root_device))
            data: Any = getattr(trainer, "datamodule", None)
            for name, manifest in getattr(data, "manifests", {}).items():
                if manifest.dealt is not None:
                    manifest.dealt.save(root / "folds" / f"{name}.json")

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Drop the rows past the checkpoint that the run goes on from, or all of a run without: they come again."""
        if trainer.is_global_zero:
            dropped = drop_rows_after(Path(trainer.default_root_dir) / run_folder.METRICS, trainer.global_step or -1)
            if dropped:
                log.info("%s: %d rows past step %d dropped", run_folder.METRICS, dropped, trainer.global_step)


def device_name(device: torch.device) -> str:
    """Return what a reader of environment.json recognises: 'cpu', or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
