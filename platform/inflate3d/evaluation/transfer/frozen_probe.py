"""Is the backbone getting better for other data? A small frozen probe of a development dataset, every so many steps."""

from __future__ import annotations

import logging
import math
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn

from inflate3d.errors import InputError, unknown_name
from inflate3d.evaluation.transfer.features import FeatureCache
from inflate3d.evaluation.transfer.frozen import frozen_features, measure_frozen
from inflate3d.evaluation.transfer.protocol import Protocol
from inflate3d.evaluation.transfer.target import Target
from inflate3d.models import Backbone
from inflate3d.training.checkpoints.ema import EMA
from inflate3d.training.run.step_record import in_accumulation_window
from inflate3d.training.strategies.whole_weights import is_sharded

log = logging.getLogger(__name__)


class FrozenProbe(pl.Callback):
    """Logs probe/<dataset>/<fraction>/<metric>: what `platform transfer --modes probe` would say of the weights now.

    It measures before the first step, every `every_steps` optimiser steps and after the last: the mean over `seeds`,
    which draw the labels, and below a fraction of 1 their standard deviation as .../std. The weights are a copy, of an
    EMA the average, so that nothing of the training changes. The first rank measures, in float32; the others wait for
    it in their next step.
    """

    def __init__(
        self,
        dataset: str,
        task: str,
        every_steps: int = 500,
        fractions: Sequence[float] = (1.0,),
        seeds: Sequence[int] = (0, 1, 2),
        max_samples: int = 256,
        sample: dict[str, Any] | None = None,
        root: str | None = None,
        domain: str | None = None,
        metric: str = "",
        target: str = "",
        init_args: dict[str, Any] | None = None,
    ) -> None:
        """dataset: a development dataset, never one that is to test the weights; its shards are in ROOT/<dataset>.

        task: a task of exclusive classes. fractions: of the labels of at most about max_samples training samples; so
        many more choose the setting, so many renew the statistics, as one of the two that are tried, and so many are
        measured (of test, or of val where there is none). sample: as in data.datasets. root: default data.root. domain:
        the dataset of the run whose stem and statistics serve (default: the same dataset, else the first, as in
        publishing). metric, target, init_args: as in `platform transfer`.
        """
        if every_steps < 1:
            raise InputError(f"FrozenProbe: every_steps is {every_steps}; it must be at least 1")
        self.every_steps, self.root, self.domain = every_steps, root, domain
        try:
            self.protocol = Protocol(
                dataset,
                task,
                target=target,
                init_args=init_args or {},
                metric=metric,
                modes=("probe",),
                fractions=tuple(fractions),
                seeds=tuple(seeds),
                sample=sample or {},
                max_train=max_samples,
                max_test=max_samples,
                recalibration_batches=math.ceil(max_samples / Protocol.batch_size),
            )
        except InputError as fault:
            raise InputError(f"FrozenProbe: {fault}") from fault

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Read the dataset's lists. InputError for what could not be measured, before any step."""
        if stage != TrainerFn.FITTING:
            return
        if is_sharded(trainer.strategy):
            name = type(trainer.strategy).__name__
            raise InputError(
                f"FrozenProbe copies whole weights, which {name} shards; use DDP or DeepSpeed stage 1 or 2"
            )
        self._ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)
        if self._ema is not None and trainer.callbacks.index(self._ema) > trainer.callbacks.index(self):
            raise InputError(
                "trainer.callbacks: FrozenProbe stands before EMA, whose average it measures; put it after"
            )
        names = list(pl_module.tasks_of)
        own = self.protocol.dataset
        self._serves = self.domain or (own if own in names else names[0])
        if self._serves not in names:
            raise unknown_name("domain", self._serves, names, where="FrozenProbe: domain")
        try:
            self._target = Target(self.root or trainer.datamodule.root, self.protocol)
        except InputError as fault:
            raise InputError(f"FrozenProbe: {fault}") from fault

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Measure the start; a run that goes on has it in its past."""
        self._check_channels(pl_module.backbone)
        if trainer.global_step == 0:
            self._log(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Measure after an optimiser step when it is time; Lightning writes the step's checkpoint after this."""
        step = trainer.global_step
        if not in_accumulation_window(trainer) and (step % self.every_steps == 0 or step == trainer.max_steps):
            self._log(trainer, pl_module)

    def measure(self, backbone: Backbone) -> dict[str, float]:
        """Return the row of a backbone, whose statistics and domains it changes."""
        names = backbone.domain.names
        # The data comes under its own name, and is served as a dataset of the run.
        backbone.domain.names = [self.protocol.dataset if name == self._serves else "" for name in names]
        with tempfile.TemporaryDirectory(prefix="inflate3d-probe-") as folder:
            found = frozen_features(backbone, self._target, FeatureCache(folder))
        row = {}
        for fraction in self.protocol.fractions:
            seeds = self.protocol.seeds if fraction < 1 else self.protocol.seeds[:1]  # of all there is nothing to draw
            totals = [
                measure_frozen(self._target, found, mode="probe", fraction=fraction, seed=seed)["test"]["total"]
                for seed in seeds
            ]
            values = [math.nan if (v := total[self._target.metric]) is None else v for total in totals]
            key = f"probe/{self.protocol.dataset}/{fraction:g}/{self._target.metric}"
            row[key] = statistics.fmean(values)
            if len(values) > 1:
                row[f"{key}/std"] = statistics.stdev(values)
        return row

    def _log(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        device = pl_module.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            row = self.measure(self._copy(pl_module))
        told = ", ".join(f"{key.removeprefix('probe/')} {v:.3f}" for key, v in row.items() if not key.endswith("/std"))
        log.info("step %d: probe of %s", trainer.global_step, told)
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step)

    def _copy(self, pl_module: Any) -> Backbone:
        copy: Backbone = pl_module.backbone.frozen_copy()
        if self._ema is not None:
            of_module = self._ema.average
            average = {k.removeprefix("backbone."): v for k, v in of_module.items() if k.startswith("backbone.")}
            copy.load_state_dict(average)
        return copy.float()

    def _check_channels(self, backbone: Backbone) -> None:
        channels = len(self._target.card.input.channels)
        switch = backbone.stem_switch
        if switch is None:
            allowed = sorted({1, backbone.in_chans})
        else:
            stem = switch.stem_of_index[backbone.domain.names.index(self._serves)]
            allowed = [(backbone.config.stems or {})[stem]]
        if channels not in allowed:
            raise InputError(
                f"FrozenProbe: {self.protocol.dataset} has {channels} channels; the stem of {self._serves} takes "
                f"{' or '.join(map(str, allowed))}. Name another dataset of the run: domain"
            )
