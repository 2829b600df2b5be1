"""The LightningModule: one backbone, many tasks, one optimiser."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from inflate3d.contracts import AbstractTask, DatasetCard, Exhibit, Features, Prediction
from inflate3d.errors import InputError, unknown_name
from inflate3d.inflation import NetInput
from inflate3d.models import Backbone, BackboneConfig
from inflate3d.sample import Batch, Triple
from inflate3d.seeds import mix
from inflate3d.training.assignment import placed_heads, tasks_of
from inflate3d.training.check import bind_tasks, check_run
from inflate3d.training.device import channels_last
from inflate3d.training.frozen import FrozenModules
from inflate3d.training.idle import idle_loss, unused_loss
from inflate3d.training.optim import (
    fuse,
    group_factor,
    is_below,
    layer_scales,
    parameter_groups,
    warmup_cosine,
)
from inflate3d.training.run.folder import FAILURES
from inflate3d.training.run.train_means import TrainMeans
from inflate3d.training.scores import Scores
from inflate3d.training.start_heads import take_published_heads
from inflate3d.training.steering.loss_watch import LossWatch
from inflate3d.training.step_encoder import StepEncoder
from inflate3d.training.strategies.whole_weights import whole_weights
from inflate3d.training.weighting import WEIGHTINGS, LossWeighting, TaskUncertainty, weight_of
from inflate3d.training.windows import Windows


class MultiTaskModule(pl.LightningModule):
    """A shared backbone and the modules of all tasks; a micro-batch holds one dataset, which may serve several tasks.

    `heads` holds what tasks train, by task and by the task's own name, a dataset's for its head. Every module takes
    part in every micro-batch: the parameters of idle ones get the gradient 0, so that all ranks and strategies see the
    same graph. Weight decay and momentum still act on idle heads, as on every parameter. What tasks never train is in
    `frozen`, out of the optimiser's sight.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        tasks: dict[str, AbstractTask],
        optimizer: OptimizerCallable | None = None,
        warmup_steps: int = 0,
        final_lr_fraction: float = 0.0,
        layer_decay: float = 1.0,
        freeze: dict[str, int | None] | None = None,
        loss_weighting: LossWeighting = "fixed",
        window_overlap: float = 0.5,
        window_batch_size: int = 4,
        start_heads: dict[str, str] | None = None,
    ) -> None:
        """backbone: which 2D net, and how it becomes 3D. tasks: by the names that metrics carry.

        optimizer: called with parameter groups, of which those of norms and biases have no weight decay; default
        torch.optim.AdamW. warmup_steps: optimiser steps of linear warm-up, before a cosine to final_lr_fraction of the
        learning rate at trainer.max_steps. layer_decay: the learning rate's factor from each layer of the backbone to
        the one below. freeze: the optimiser steps for which parts stay as they are, by module name ({backbone: 1000});
        null: always.
        loss_weighting: fixed (each task's loss_weight), uncertainty (learned, arXiv:1705.07115) or constant (over the
        loss of a constant answer). window_overlap and window_batch_size: sliding windows over whole volumes in
        evaluation. start_heads: for a head (the dataset's name, or <dataset>-<task> where it has several), the head of
        the backbone's publication that it begins as.
        """
        super().__init__()
        if not tasks:
            raise InputError("model.tasks is empty; name at least one task")
        if warmup_steps < 0:
            raise InputError(f"model.warmup_steps is {warmup_steps}; it must not be negative")
        if not 0 < layer_decay <= 1:
            raise InputError(f"model.layer_decay is {layer_decay}; it must be above 0, and 1 at most")
        if loss_weighting not in WEIGHTINGS:
            raise unknown_name("weighting", str(loss_weighting), WEIGHTINGS, where="model.loss_weighting")
        self.backbone_config = backbone
        self.tasks = dict(tasks)
        self.tasks_of = tasks_of(tasks)
        # No default in the signature: the parser would hand AdamW's weight decay on to any other class.
        self.make_optimizer = optimizer or torch.optim.AdamW
        self.warmup_steps = warmup_steps
        self.final_lr_fraction = final_lr_fraction
        self.layer_decay = layer_decay
        self.freeze_steps = dict(freeze or {})
        self.start_heads = dict(start_heads or {})
        self.loss_weighting = loss_weighting
        self.constant_losses: dict[str, float] = {}
        self.window_overlap = window_overlap
        self.window_batch_size = window_batch_size
        self.cards: dict[str, DatasetCard] = {}
        self.windows: dict[str, Triple] = {}
        self.seen: dict[str, Any] = {}
        self.net_inputs: list[NetInput] = []  # what plan "auto" looks at
        self.means, self.watch = TrainMeans(), LossWatch()
        self.last_row: dict[str, float] = {}
        self.learning_rate = 0.0  # of the step under way: after it, the schedule has moved on
        self._held: list[str] | None = None  # parts that are frozen now
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))

    # ------------------------------------------------------------------------------------------------ building

    def setup(self, stage: str) -> None:
        """Tell the data module which tasks each dataset serves, for its table."""
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        datamodule.tasks_of = dict(self.tasks_of)
        self.windows, self.net_inputs, self.seen = dict(datamodule.windows), datamodule.net_inputs, datamodule.seen

    def configure_model(self) -> None:
        """Build the backbone and the heads from the cards in the shards' manifests; once."""
        if not self.cards:
            manifests = self.trainer.datamodule.manifests  # type: ignore[attr-defined]
            self.build({name: manifest.card for name, manifest in manifests.items()})
            if self.trainer.strategy.root_device.type == "cuda":
                channels_last(self)

    def build(self, cards: Mapping[str, DatasetCard]) -> MultiTaskModule:
        """Build the backbone and the heads for these datasets, and return the module; needs no trainer.

        The initial weights are a function of the seed alone, whatever was drawn before. Raises InputError where tasks
        and datasets do not fit.
        """
        for problem in check_run(self.tasks, cards, loss_weighting=self.loss_weighting):
            raise InputError(str(problem))
        self.cards = {name: cards[name] for name in self.tasks_of}
        bind_tasks(self.tasks, self.cards)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(self.seed, "weights"))
            self.backbone = Backbone(self.backbone_config.resolved(self.net_inputs))
            self.backbone.setup_domains(self.cards)
            self.heads = nn.ModuleDict()
            for name, task in self.tasks.items():
                task.build(self.backbone)
                self.heads[name] = nn.ModuleDict(task.modules())
            self.frozen = FrozenModules(self.tasks)
            take_published_heads(placed_heads(self.tasks), self.start_heads, self.backbone_config)
            if self.loss_weighting == "uncertainty":
                self.task_uncertainty = TaskUncertainty(self.tasks)
        self.scores = Scores(self.tasks)
        for prefix, steps in self.freeze_steps.items():
            parts = [p for name, p in self.named_parameters() if is_below(name, prefix)]
            if not parts:
                names = {".".join(n.split(".")[:i]) for n, _ in self.named_parameters() for i in range(1, 5)}
                raise unknown_name("part", prefix, names, where="model.freeze")
            for parameter in parts if steps is None else ():
                parameter.requires_grad_(False)
        return self

    # ------------------------------------------------------------------------------------------------ training

    def on_train_start(self) -> None:
        """Take the first step at the schedule of this very run: a checkpoint holds the rate of the one before."""
        for config in self.trainer.lr_scheduler_configs:
            schedule: Any = config.scheduler
            for group, base, factor in zip(
                schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
            ):
                group["lr"] = base * factor(schedule.last_epoch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed what a step draws (dropout, drop path) from the micro-batch, so that a resumed run draws the same."""
        torch.manual_seed(mix(self.seed, "step", batch.micro_batch, self.global_rank))
        self.learning_rate = self.base_learning_rate * self.schedule(self.trainer.global_step)
        self._hold_statistics()

    def _hold_statistics(self) -> None:
        """Keep the running statistics of frozen parts as they are; let them go when the freeze ends."""
        step = self.trainer.global_step
        held = [prefix for prefix, steps in self.freeze_steps.items() if steps is None or step < steps]
        if held == self._held or not (held or self._held):
            return
        self.train()
        self._held = held
        for name, part in self.named_modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and any(is_below(name, prefix) for prefix in held):
                part.eval()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the losses of one micro-batch's tasks, each weighted by its task's loss_weight."""
        encoder = StepEncoder(self.backbone)
        losses = [self._task_loss(name, encoder, batch) for name in self.tasks_of[batch.dataset]]
        total = sum(losses[1:], start=losses[0])
        made = encoder.made or [encoder(batch.image, domain=batch.dataset)]
        return total + idle_loss(self.tasks, batch.dataset, self.backbone, total) + unused_loss(made)

    def _task_loss(self, name: str, encoder: StepEncoder, batch: Batch) -> Tensor:
        task = self.tasks[name]
        values = task.step(encoder, batch, seed=mix(self.seed, "task", name, batch.micro_batch, self.global_rank))
        self.means.add({f"train/{name}/{batch.dataset}/{key}": value for key, value in values.items()})
        self.watch.add(batch, name, values["loss"])
        loss = values["loss"]
        if self.loss_weighting == "uncertainty":
            loss = self.task_uncertainty(name, loss)
        return weight_of(task, name, batch.dataset, self.constant_losses) * loss

    def after_step(self) -> None:
        """Let tasks do what follows an optimiser step, on all ranks, before a checkpoint of it is written."""
        moving = [task for task in self.tasks.values() if type(task).after_step is not AbstractTask.after_step]
        if moving:
            with whole_weights(self), torch.no_grad():
                for task in moving:
                    task.after_step(self.backbone, step=self.trainer.global_step)
        self.frozen.share_buffers()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MultiTaskModule:
        super()._apply(fn, recurse)
        if hasattr(self, "frozen"):
            self.frozen.apply(fn)
        return self

    def log_train_means(self) -> None:
        """Log the mean losses since the last row, every trainer.log_every_n_steps optimiser steps and at the last.

        Called after an optimiser step and before a checkpoint of it is written; 0 steps: at the last alone.
        TrainingFailure if a loss is not finite or explodes.
        """
        step, every = self.trainer.global_step, self._steps_of_row()
        if step % every and step != self.trainer.max_steps:
            return
        row = self._take_means()
        self._judge(row)
        self.last_row = {**row, "lr": self.learning_rate}
        if self.loss_weighting == "uncertainty":
            self.last_row |= {f"weight/{name}": w for name, w in self.task_uncertainty.weights().items()}
        for logger in self.loggers:
            logger.log_metrics(self.last_row, step=step)

    def check_weights(self) -> None:
        """Raise TrainingFailure, on all ranks, if a weight is not finite: called before a checkpoint is written."""
        finite = torch.stack([p.detach().isfinite().all() for p in self.parameters()]).all()
        if not self.trainer.strategy.reduce_boolean_decision(bool(finite), all=True):
            self._judge({**self._take_means(), "a weight": math.nan})

    def _steps_of_row(self) -> int:
        trainer: Any = self.trainer
        return trainer.log_every_n_steps or max(trainer.max_steps, 1)

    def _take_means(self) -> dict[str, float]:
        return self.means.take(reduce=self._sum_over_ranks)

    @property
    def _world_size(self) -> int:
        return self._trainer.world_size if self._trainer is not None else 1

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        total: Any = self.trainer.strategy.reduce(value, reduce_op="sum")
        return total

    def _judge(self, row: Mapping[str, float]) -> None:
        trainer, step, every = self.trainer, self.trainer.global_step, self._steps_of_row()
        folder = Path(trainer.default_root_dir) / FAILURES
        self.watch.check(
            row, step=step, steps=step % every or every, lr=self.learning_rate, folder=folder, rank=trainer.global_rank
        )

    def configure_optimizers(self) -> Any:
        """Return the one optimiser and its schedule, counted in optimiser steps up to trainer.max_steps."""
        max_steps = self.trainer.max_steps
        if max_steps < 1:
            raise InputError(f"trainer.max_steps is {max_steps}; set the number of optimiser steps of the run")
        groups = parameter_groups(
            self,
            no_weight_decay=self._no_weight_decay(),
            lr_scale=self._lr_scale(),
            frozen_steps={prefix: steps for prefix, steps in self.freeze_steps.items() if steps is not None},
        )
        if not groups:
            raise InputError("model.freeze leaves nothing to train")
        self.optimizer_parameters = [list(group["params"]) for group in groups]
        optimizer = self.make_optimizer(groups)
        if self.trainer.strategy.root_device.type in ("cpu", "cuda"):
            fuse(optimizer)
        self.base_learning_rate = float(optimizer.defaults["lr"])
        self.schedule = warmup_cosine(
            warmup_steps=self.warmup_steps, max_steps=max_steps, final_fraction=self.final_lr_fraction
        )
        factors = [group_factor(group, self.schedule) for group in optimizer.param_groups]
        # LambdaLR saves where it is, not the function: a run that goes on with another max_steps follows the new one.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _no_weight_decay(self) -> set[str]:
        named: Any = getattr(self.backbone.net, "no_weight_decay", set)  # timm's own list: position embeddings and such
        return {f"backbone.net.{name}" for name in named()}

    def _lr_scale(self) -> dict[str, float]:
        if self.layer_decay == 1:
            return {}
        return {f"backbone.net.{name}": f for name, f in layer_scales(self.backbone.net, self.layer_decay).items()}

    # ------------------------------------------------------------------------------------------------ evaluation

    def predict(self, batch: Batch, task: str | None = None) -> Prediction | Features:
        """Return a task's answer for a batch; None: of the dataset's first task.

        What is larger than the training patch goes through in sliding windows of it. In evaluation mode and without
        gradients, which is for the caller to see to.
        """
        own = self.tasks[task or self.tasks_of[batch.dataset][0]]
        windows = self._windows(batch.dataset)
        if windows is None or windows.fits(batch):
            return own.predict(self.backbone, batch)
        return windows.predict(batch, lambda part: own.predict(self.backbone, part))

    def _windows(self, dataset: str) -> Windows | None:
        size = self.windows.get(dataset)
        return size and Windows(size, self.window_overlap, self.window_batch_size)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update what is measured of the batch's tasks."""
        for name in self.tasks_of[batch.dataset]:
            if self.scores.has_metrics(name, batch.dataset):
                value = self.tasks[name].value(batch)
                self.scores.update(name, batch.dataset, self.predict(batch, name).tensor, value)
            if self.scores.has_step(name, batch.dataset):
                values = self._held_out(name, batch, self.tasks[name].step)
                self.scores.add_step(name, batch.dataset, values, len(batch))
            self.scores.count(name, batch.dataset, len(batch))

    def show(self, batch: Batch, task: str) -> list[Exhibit]:
        """Return what a person sees of a task on each sample, drawn as on held-out data; called as `predict` is."""
        return self._held_out(task, batch, self.tasks[task].show)

    def _held_out(self, name: str, batch: Batch, ask: Callable[..., Any]) -> Any:
        """Return what a task's step, or what shows it, gives, its draws a function of the samples alone."""
        if (windows := self._windows(batch.dataset)) is not None:
            batch = windows.centre(batch, self.cards[batch.dataset])
        seed = mix(self.seed, "held out", name, *batch.keys)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ask(StepEncoder(self.backbone), batch, seed=seed)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update what is measured of the batch's tasks."""
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[list[str], dict[str, Prediction | Features]]:
        """Return the keys of a batch and the answer of each of its tasks."""
        return batch.keys, {name: self.predict(batch, name) for name in self.tasks_of[batch.dataset]}

    def on_validation_epoch_start(self) -> None:
        """Forget the metrics of the last validation."""
        self.scores.reset()

    def on_test_epoch_start(self) -> None:
        """Forget the metrics of the last test."""
        self.scores.reset()

    def on_validation_epoch_end(self) -> None:
        """Log val/<task>/<dataset>/<metric> and val/score; of a task without a main metric its loss."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log test/<task>/<dataset>/<metric> and test/score."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        seen = self.scores.seen(device=self.device, reduce=self._sum_over_ranks)
        values = {f"{stage}/{name}": value for name, value in self.scores.compute(seen).items()}
        # Lightning takes the key "step" as the row's step; its own would be one less than the steps done.
        self.log_dict({**values, "step": float(self.trainer.global_step)}, sync_dist=self.trainer.world_size > 1)

    # ------------------------------------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what publishing needs without the shards (cards, backbone, net ...), and means since the last row."""
        checkpoint["cards"] = {name: card.to_dict() for name, card in self.cards.items()}
        checkpoint["seen"] = self.seen
        checkpoint["backbone"] = self.backbone.config.to_dict()
        checkpoint["net"] = self.backbone.net.net_spec.to_dict()  # type: ignore[union-attr, operator]
        if published := getattr(self.backbone.net, "published", None):  # whose data and licences these weights inherit
            own = {"data": published.get("training", {}).get("data", []), "source": published.get("source_weights")}
            checkpoint["ancestor"] = own
        checkpoint["train_means"] = self.means.state_dict(
            reduce=self._sum_over_ranks, rank=self.global_rank, world_size=self._world_size
        )
        checkpoint["first_means"] = self.watch.state_dict()
        checkpoint["constant_losses"] = dict(self.constant_losses)
        checkpoint["frozen"] = self.frozen.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the means since the last row, and what was measured before the first step."""
        self.backbone.check_trained_with(checkpoint["net"])
        self.means.load_state_dict(checkpoint["train_means"], rank=self.global_rank, world_size=self._world_size)
        self.watch.load_state_dict(checkpoint["first_means"])
        self.constant_losses = dict(checkpoint["constant_losses"])
        self.frozen.load_state_dict(checkpoint["frozen"])
