"""Predictions on a few validation samples as a picture after every validation, in the run folder and at the loggers."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn

from inflate3d.evaluation.pictures import PREDICTIONS
from inflate3d.evaluation.pictures.samples import plot_samples
from inflate3d.training import DataModule

log = logging.getLogger(__name__)


class SamplePictures(pl.Callback):
    """Draws <run folder>/predictions/step-XXXXXXXX.png, and hands it to every logger that takes images (W&B).

    The weights are those that the validation scores. Rank 0 draws alone, so under ZeRO-3, where it holds no whole
    weight, nothing is drawn, which is said once.
    """

    def __init__(self, per_dataset: int = 2) -> None:
        self.per_dataset = per_dataset
        self.draws = True

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Say where there will be no pictures."""
        self.draws = getattr(trainer.strategy, "stage", None) != 3
        if not self.draws:
            log.info("no sample pictures under ZeRO-3: no rank holds whole weights")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw."""
        if trainer.state.fn != TrainerFn.FITTING or not trainer.is_global_zero or not self.draws:
            return
        path = Path(trainer.default_root_dir) / PREDICTIONS / f"step-{trainer.global_step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        plot_samples(pl_module, _copy_of(data), path, per_dataset=self.per_dataset)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image("val/pictures", [str(path)], step=trainer.global_step)


def _copy_of(data: DataModule) -> DataModule:
    """A data module of its own over the same validation samples, which loads them in this process."""
    own = DataModule(str(data.root), copy.deepcopy(data.datasets), num_workers=0, seed=data.seed)
    own.tasks_of = dict(data.tasks_of)
    own.cache, own.max_broken, own.window_shards = data.cache, data.max_broken, data.window_shards
    return own
