"""The target of a transfer: one dataset's shards, which samples each step may see, and the arms' streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from torchmetrics import Metric, MetricCollection

from inflate3d.contracts import AbstractTarget, AbstractTask, Split
from inflate3d.data.samples.views import make_stage
from inflate3d.data.shards.reader import ShardReader
from inflate3d.data.stream.batches import EvalStream, Source, TrainStream
from inflate3d.data.stream.mixture import Mixture
from inflate3d.discover import find
from inflate3d.errors import InputError, unknown_name
from inflate3d.evaluation.transfer.holdout import Listed, PickedOrder, carve, labelled_share, list_samples
from inflate3d.evaluation.transfer.protocol import Protocol, modes_of
from inflate3d.sample import Batch, Triple
from inflate3d.seeds import mix
from inflate3d.training.datamodule import DataModule, DatasetConfig

_EVAL_BATCH = 32


class Target:
    """One dataset under a protocol. fit: samples to train on; choice: samples for choices; test: read at the end.

    test is the dataset's test split, or its val split if it has no test. InputError if task and dataset do
    not fit.
    """

    def __init__(self, root: str | Path, protocol: Protocol) -> None:
        self.protocol = protocol
        config = DatasetConfig(protocol.batch_size, sample=dict(protocol.sample), augment=protocol.augment)
        self.data = DataModule(str(root), {protocol.dataset: config}, seed=protocol.split_seed).prepare()
        self.data.tasks_of = {protocol.dataset: [protocol.task]}
        self.manifest = self.data.manifests[protocol.dataset]
        self.card = self.manifest.card
        self.test_split: Split = "test" if self.manifest.num_samples("test") else "val"
        self._check()
        classes = self.new_task().target_names[protocol.dataset] if self.target.exclusive else None
        self.fit, self.choice = carve(
            list_samples(self._reader("train"), classes), val_fraction=protocol.val_fraction, seed=protocol.split_seed
        )
        if (most := protocol.max_train) is not None:
            self.fit, self.choice = (_at_most(part, most, protocol.split_seed) for part in (self.fit, self.choice))
        self.test = list_samples(self._reader(self.test_split), classes)
        if (most := protocol.max_test) is not None and most < len(self.test):
            self.test = [self.test[i * len(self.test) // most] for i in range(most)]

    def _check(self) -> None:
        for mode in self.protocol.modes:
            if mode not in modes_of(self.target):
                told = f"{self.target.describe()} is measured by {', '.join(modes_of(self.target))}"
                raise InputError(f"--modes {mode}: {told}; leave it out")
        for split in ("train", self.test_split):
            if not self.manifest.num_samples(split):
                raise InputError(f"{self.card.name} has no {split} samples; a transfer needs train, and val or test")
        known = [str(name) for name in self.metrics()]
        if self.metric not in known:
            raise unknown_name("metric", self.metric, known, where="--metric")

    @property
    def metric(self) -> str:
        """The metric for choices, reported first."""
        return self.protocol.metric or self.new_task().main_metric or ""

    @property
    def target(self) -> AbstractTarget:
        """What is measured."""
        return self.new_task().target_of(self.protocol.dataset)

    def value(self, batch: Batch) -> Tensor:
        """Return a batch's values of it."""
        return batch.targets[self.new_task().target_names[self.protocol.dataset]]

    def metrics(self) -> MetricCollection:
        """Return fresh metrics of the task, which wait for no other rank: a process alone measures."""
        metrics = self.new_task().metrics(self.protocol.dataset)
        assert metrics is not None, "tasks with a target have metrics"
        for metric in metrics.modules():
            if isinstance(metric, Metric):
                metric.distributed_available_fn = _no_ranks  # sync_on_compute is read on construction only
        return metrics

    @cached_property
    def windows(self) -> dict[str, Triple]:
        """The patch that slides over whole volumes."""
        return dict(self.data.windows)

    def new_task(self) -> AbstractTask:
        """Return a fresh task over the dataset. InputError where it does not fit, or measures no labels."""
        name, target = self.protocol.dataset, self.protocol.target
        cls, datasets = find("tasks", self.protocol.task).load(), {name: target} if target else [name]
        try:
            task: AbstractTask = cls(datasets=datasets, **self.protocol.init_args)
            task.bind({name: self.card})
        except (InputError, TypeError) as fault:
            raise InputError(f"--task {self.protocol.task}: {fault}") from fault
        if task.target is None:
            raise InputError(f"--task {self.protocol.task} needs no labels; a transfer measures a task that has some")
        return task

    def labelled(self, fraction: float, seed: int) -> list[Listed]:
        """Return the training samples whose labels a cell may use."""
        return labelled_share(self.fit, fraction, seed=seed)

    def needed(self) -> list[Listed]:
        """Return the training samples that any cell of the protocol uses, in stored order."""
        cells = [(f, s) for f in self.protocol.fractions for s in self.protocol.seeds]
        keys = {s.key for cell in cells for s in self.labelled(*cell)}
        return [s for s in self.fit if s.key in keys]

    def train_batches(self, samples: Sequence[Listed], *, seed: int) -> Iterator[Batch]:
        """Return endless training batches, with crops and augmentation drawn by the seed."""
        source = self._source("train", samples, seed=seed, training=True)
        return iter(TrainStream({source.name: source}, Mixture({source.name: 1.0})))

    def batches(self, samples: Sequence[Listed], split: Split) -> Iterator[Batch]:
        """Yield each sample once, in the order given, as in evaluation."""
        source = self._source(split, samples, seed=0, training=False)
        # Whole volumes that go through in windows differ in shape.
        source.batch_size = 1 if self.protocol.dataset in self.windows else _EVAL_BATCH
        stream = EvalStream({source.name: source})
        return (stream[i] for i in range(len(stream)))

    def unlabelled_batches(self) -> Iterator[Batch]:
        """Yield the training data for BatchNorm's statistics; labels are not used."""
        batches = self.train_batches(self.fit, seed=self.protocol.split_seed)
        return (next(batches) for _ in range(self.protocol.recalibration_batches))

    def splits(self) -> dict[str, Any]:
        """Return the keys of the validation split, and the counts of all, for the results file."""
        return {
            "fit": len(self.fit),
            "choice": len(self.choice),
            "choice_keys": [s.key for s in self.choice],
            "test": len(self.test),
            "test_split": self.test_split,
            "labels": {
                f"{fraction:g}": [len(self.labelled(fraction, seed)) for seed in self.protocol.seeds]
                for fraction in self.protocol.fractions
            },
        }

    def _reader(self, split: Split) -> ShardReader:
        return ShardReader(self.data.shards_of(self.protocol.dataset), self.manifest, split, self.data.cache)

    def _source(self, split: Split, samples: Sequence[Listed], *, seed: int, training: bool) -> Source:
        config = self.data.datasets[self.protocol.dataset]
        stage = make_stage(self.card, config.sample, training=training, augment=config.augment)
        order = PickedOrder([s.place for s in samples], mix(seed, "order", self.protocol.dataset))
        return replace(self.data.source(self.protocol.dataset, split), order=order, stage=stage)


def _no_ranks() -> bool:
    return False


def _at_most(samples: list[Listed], most: int, seed: int) -> list[Listed]:
    return labelled_share(samples, most / len(samples), seed=seed) if len(samples) > most else samples
