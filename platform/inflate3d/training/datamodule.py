"""Shards become the loaders of a run; the whole state of the training stream is one integer.

`consumed` counts the global micro-batches that the trainer has finished, never what workers prefetched. A checkpoint
holds it, and train_dataloader() starts there.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from inflate3d.contracts import Split
from inflate3d.data.samples.options import sample_options, view_options
from inflate3d.data.samples.views import make_stage
from inflate3d.data.shards.cache import GB, ShardCache
from inflate3d.data.shards.folds import dealt
from inflate3d.data.shards.manifest import MANIFEST_FILE, Manifest
from inflate3d.data.shards.manifest_change import changed_entries, describe_change, snapshot
from inflate3d.data.shards.reader import ShardReader
from inflate3d.data.stream.batches import EvalStream, Source, TrainStream
from inflate3d.data.stream.mixture import Group, Mixture, grouped
from inflate3d.data.stream.order import SampleOrder
from inflate3d.discover import find
from inflate3d.errors import InputError, unknown_name
from inflate3d.inflation import NetInput
from inflate3d.remote.address import is_remote, join, shown
from inflate3d.sample import Batch, Triple
from inflate3d.seeds import mix
from inflate3d.training.run.build_record import check_build_record, write_build_record
from inflate3d.training.run.loader import RunLoader
from inflate3d.training.steering.stop_signals import shield_worker

_LEAST_BROKEN = 3


@dataclass
class DatasetConfig:
    """One dataset of a run; its shards are in <root>/<name>.

    batch_size: the global micro-batch, all ranks together. weight: share of the mixture. sample: what one sample is
    (inflate3d.data.samples.options). augment: list of transforms, or the YAML file that holds one. views: in training,
    several views of each sample by name ({global: {}, local: {sample: {...}, augment: ...}}), each with what differs.
    build: {class_path, init_args} of the dataset class that makes the shards where there are none; for videos also
    `encode: {gop: 12, short_side: 128}`, which encodes them anew so that clips are reached fast (docs/data.md).
    eval_batch_size: default batch_size, but 1 where evaluation sees whole volumes, which differ in shape.
    targets: what is to be taken otherwise of the card's targets, {mask: {annotated: [liver]}} (DatasetCard.restated).
    max_eval_samples: evenly spaced ones of the split. group: its group in data.groups, where it is in one.
    fold: train and val dealt anew, {number: 0, of: 5} or {number: 0, file: splits_final.json} (data.shards.folds).
    """

    batch_size: int
    weight: float = 1.0
    sample: dict[str, Any] = field(default_factory=dict)
    augment: str | list[dict[str, Any]] | None = None
    views: dict[str, dict[str, Any]] | None = None
    build: dict[str, Any] | None = None
    targets: dict[str, dict[str, Any]] | None = None
    eval_batch_size: int | None = None
    max_eval_samples: int | None = None
    group: str | None = None
    fold: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, name: str, values: Mapping[str, Any]) -> DatasetConfig:
        """Read one from plain values; InputError names an unknown or missing key."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise unknown_name("key", key, known, where=f"data.datasets.{name}.{key}")
        if "batch_size" not in values:
            raise InputError(f"data.datasets.{name}: batch_size is missing")
        return cls(**values)


class DataModule(pl.LightningDataModule):
    """The loaders of a run over one or more datasets; works without a Trainer too."""

    def __init__(
        self,
        root: str,
        datasets: dict[str, DatasetConfig],
        num_workers: int = 0,
        seed: int | None = None,
        window_shards: int = 64,
        max_broken: float = 0.01,
        cache_gb: float = 50,
        cache_dir: str = "~/.cache/inflate3d/shards",
        outage_s: float = 600,
        temperature: float | None = None,
        groups: dict[str, Group] | None = None,
    ) -> None:
        """root: the folder of shard folders, local or remote (https, s3). num_workers: loading processes a rank.

        seed: of order, crops and augmentation; default: seed_everything. window_shards: samples are shuffled among that
        many shards, shuffled themselves. max_broken: share of a split's samples that may be broken, each replaced by
        another, before a process stops; at least 3 are let pass, unless it is 0. cache_gb, cache_dir: what remote
        shards may take of the local disk, and where; all runs of a machine share it. outage_s: how long a server that
        gives nothing is waited for before the run ends as Unreachable. temperature: multiplies each
        weight by (micro-batches of one pass)^(1 / temperature): at 1 every dataset is passed equally often, higher ones
        favour small datasets, and without it the weights alone count. groups: several datasets as one entry of the
        mixture, each with its weight and the temperature among its members; in a config, `members` of a dataset.
        """
        super().__init__()
        self.prepare_data_per_node = False  # machines share the run's folder, and so its shards
        self.root: Path | str = root if is_remote(root) else Path(root).expanduser()
        self.cache = ShardCache(cache_dir, int(cache_gb * GB), outage_s)  # touched for remote tars alone
        self.datasets = {
            name: d if isinstance(d, DatasetConfig) else DatasetConfig.from_dict(name, d)
            for name, d in datasets.items()
        }
        for name, config in self.datasets.items():
            for key in ("batch_size", "eval_batch_size", "max_eval_samples"):
                if (value := getattr(config, key)) is not None and value < 1:
                    raise InputError(f"data.datasets.{name}.{key} is {value}; it must be at least 1")
        self.weights = {name: config.weight for name, config in self.datasets.items()}
        self.temperature = temperature
        self.groups = {n: g if isinstance(g, Group) else Group(**g) for n, g in (groups or {}).items()}
        self._mixed(dict.fromkeys(self.weights, 1.0))  # checked before any shard is read
        self.num_workers = num_workers
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.window_shards = window_shards
        self.max_broken = max_broken
        self.tasks_of: dict[str, list[str]] = {}
        self.consumed = 0

    # ------------------------------------------------------------------------------------------------- before loading

    def prepare_data(self) -> None:
        """Build the shards that are missing and have a `build:`; Lightning calls it in the first process."""
        for name, config in self.datasets.items():
            folder = self.shards_of(name)
            if config.build is None or isinstance(folder, str):
                continue
            if (folder / MANIFEST_FILE).is_file():
                check_build_record(folder, config.build)
            else:
                from inflate3d.data.shards.writer import build_shards

                dataset = find("datasets", config.build["class_path"]).load()
                build_shards(dataset(**config.build.get("init_args", {})), folder, encode=config.build.get("encode"))
                write_build_record(folder, config.build)

    def shards_of(self, name: str) -> Path | str:
        """Return the folder or address of a dataset's shards."""
        return join(self.root, name) if isinstance(self.root, str) else self.root / name

    def prepare(self) -> DataModule:
        """Build what is missing, read the manifests and return self: for use without a Trainer."""
        self.prepare_data()
        self.setup("fit")
        return self

    def setup(self, stage: str) -> None:
        """Read the manifests and check every dataset's samples and views against them, before any weight is loaded."""
        for name, manifest in self.manifests.items():
            config, where = self.datasets[name], f"data.datasets.{name}"
            sample_options(manifest.card, config.sample, where=f"{where}.sample")
            view_options(manifest.card, config.sample, config.views, where=where)

    @cached_property
    def manifests(self) -> dict[str, Manifest]:
        """The manifest of each dataset, with its card as the config restates it, and its fold.

        Raises InputError that names the build command where there is none.
        """
        loaded = {name: Manifest.load(self.shards_of(name)) for name in self.datasets}
        return {name: self._restated(name, manifest) for name, manifest in loaded.items()}

    def _restated(self, name: str, manifest: Manifest) -> Manifest:
        config, where = self.datasets[name], f"data.datasets.{name}"
        card = manifest.card.restated(config.targets or {}, where=f"{where}.targets")
        manifest = replace(manifest, card=card)
        if config.fold is None:
            return manifest
        reader = ShardReader(self.shards_of(name), manifest, cache=self.cache)
        return dealt(reader, config.fold, where=f"{where}.fold")

    @cached_property
    def mixture(self) -> Mixture:
        """The schedule of the datasets; with a temperature it depends on the manifests."""
        batches = {n: 1.0 for n in self.weights}
        if any(t is not None for t in (self.temperature, *(group.temperature for group in self.groups.values()))):
            samples = {n: max(1, m.num_samples("train")) for n, m in self.manifests.items()}
            batches = {n: samples[n] / config.batch_size for n, config in self.datasets.items()}
        return Mixture(self._mixed(batches))

    def _mixed(self, batches: Mapping[str, float]) -> dict[str, float | Fraction]:
        group_of = {name: config.group for name, config in self.datasets.items()}
        return grouped(self.weights, batches, self.temperature, group_of=group_of, groups=self.groups)

    @cached_property
    def windows(self) -> dict[str, Triple]:
        """The window (D, H, W) that slides over whole samples in evaluation, of each dataset that has one."""
        options = {n: sample_options(m.card, self.datasets[n].sample) for n, m in self.manifests.items()}
        return {name: o.window for name, o in options.items() if o.window is not None}

    @cached_property
    def net_inputs(self) -> list[NetInput]:
        """What a net is given of each dataset in training, as far as card and sample options tell."""
        options = {n: sample_options(m.card, self.datasets[n].sample) for n, m in self.manifests.items()}
        return [NetInput(options[n].input_size, m.card.input.spacing_mm) for n, m in self.manifests.items()]

    @property
    def seen(self) -> dict[str, dict[str, Any]]:
        """What training volumes were like (`Seen.to_dict`), of each dataset whose shards tell."""
        return {name: m.statistics["seen"] for name, m in self.manifests.items() if "seen" in m.statistics}

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a dataset, for the table before the first step: media, tasks, share, samples, shapes."""
        rows = []
        for name, manifest in self.manifests.items():
            config = self.datasets[name]
            size = sample_options(manifest.card, config.sample).input_size
            rows.append(
                {
                    "dataset": name,
                    "task": "+".join(self.tasks_of.get(name, [])),
                    "media": manifest.card.media,
                    "share": self.mixture.shares[name],
                    "batch_size": config.batch_size,
                    "sample": "as stored" if size is None else "x".join(map(str, size)),
                    **{split: manifest.num_samples(split) for split in ("train", "val", "test")},
                }
            )
        return rows

    # --------------------------------------------------------------------------------------------------------- state

    def advance(self, micro_batch: int) -> None:
        """Note that the trainer has finished this micro-batch, by the batch's own index."""
        self.consumed = micro_batch + 1

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on: the integer, and all that gives it its meaning."""
        return {"consumed": self.consumed, "shards": self._snapshots(), "schedule": self._schedule()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at a saved state. Raises InputError that says what changed if the order is no longer the same."""
        before, now = state_dict["shards"], self._snapshots()
        changes = [f"dataset {name}: absent before" for name in now if name not in before]
        changes += [f"dataset {name}: absent now" for name in before if name not in now]
        told = {name: describe_change(before[name], now[name]) for name in now if name in before}
        changes += [f"shards of {name}: {change}" for name, change in told.items() if change]
        changes += changed_entries(state_dict["schedule"], self._schedule())
        if changes:
            raise InputError(
                "this run cannot go on in the same order, its data changed: "
                + "; ".join(changes)
                + ". Restore them, or start a run in another trainer.default_root_dir"
            )
        self.consumed = int(state_dict["consumed"])

    def _snapshots(self) -> dict[str, dict[str, Any]]:
        return {name: snapshot(manifest) for name, manifest in self.manifests.items()}

    def _schedule(self) -> dict[str, Any]:
        schedule: dict[str, Any] = {"data.seed": self.seed, "data.window_shards": self.window_shards}
        schedule["data.temperature"] = self.temperature
        for name, config in self.datasets.items():
            schedule[f"data.datasets.{name}.batch_size"] = config.batch_size
            schedule[f"data.datasets.{name}.weight"] = float(config.weight)
            if config.group is not None:
                schedule[f"data.datasets.{name}.group"] = config.group
            if (fold := self.manifests[name].dealt) is not None:
                schedule[f"data.datasets.{name}.fold"] = str(fold)
        for name, group in self.groups.items():
            schedule[f"data.groups.{name}.weight"] = float(group.weight)
            schedule[f"data.groups.{name}.temperature"] = group.temperature
        return schedule

    # ------------------------------------------------------------------------------------------------------- loaders

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the endless loader of this rank, from micro-batch `consumed` on.

        In a run it is a window of accumulation ahead, and one more: the step at which ranks can agree to stop is whole.
        """
        ahead = 0 if self.trainer is None else self.trainer.accumulate_grad_batches + 1
        loader = self._loader(self._train_stream(list(self.datasets)), ahead=ahead)
        loader.asked_early = self.trainer is not None
        return loader

    def first_batches(self, name: str, count: int) -> list[Batch]:
        """Return the first batches of one dataset on this rank, loaded here and now; the stream's state stays."""
        stream = self._train_stream([name])
        numbers = (m for m in itertools.count() if self.mixture.at(m)[0] == name)
        return [stream.batch(m) for m in itertools.islice(numbers, count)]

    def _train_stream(self, names: list[str]) -> TrainStream:
        sources = {name: self.source(name, "train") for name in names}
        rank, world_size = self._place()
        return TrainStream(sources, self.mixture, start=self.consumed, rank=rank, world_size=world_size)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Return one loader over the validation splits of all datasets, one after the other; [] if there are none."""
        return self._eval_loader("val") or []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return one loader over the test splits of all datasets that have one."""
        if (loader := self._eval_loader("test")) is None:
            raise InputError(f"no dataset has a test split: {', '.join(self.datasets)}. Use: platform validate")
        return loader

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the test splits."""
        return self.test_dataloader()

    def _eval_loader(self, split: Split) -> DataLoader[Batch] | None:
        sources = {n: self.source(n, split) for n, m in self.manifests.items() if m.num_samples(split)}
        if not sources:
            return None
        rank, world_size = self._place()
        most = {name: self.datasets[name].max_eval_samples for name in sources}
        stream = EvalStream(sources, max_samples=most, rank=rank, world_size=world_size)
        return self._loader(stream, ahead=0 if self.trainer is None else 2)

    def source(self, name: str, split: Split) -> Source:
        """Return one split of one dataset as a stream reads it."""
        manifest, config = self.manifests[name], self.datasets[name]
        where, training = f"data.datasets.{name}", split == "train"
        total = manifest.num_samples(split)
        if not total:
            raise InputError(
                f"{where}: no sample in split {split!r} of {shown(self.shards_of(name))}; drop it: --{where} null"
            )
        one = name in self.windows  # whole volumes
        return Source(
            name=name,
            reader=ShardReader(self.shards_of(name), manifest, split, self.cache),
            order=SampleOrder(
                manifest.entries(split).samples,
                mix(self.seed, "order", name),
                window_shards=self.window_shards,
                numbers=manifest.numbers(split),
            ),
            stage=make_stage(
                manifest.card,
                config.sample,
                training=training,
                augment=config.augment,
                views=config.views,
                where=where,
            ),
            batch_size=config.batch_size if training else config.eval_batch_size or (1 if one else config.batch_size),
            max_broken=max(_LEAST_BROKEN, math.ceil(self.max_broken * total)) if self.max_broken else 0,
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; from pinned memory without waiting, which Lightning asks of single tensors alone."""
        if isinstance(batch, Batch):
            return batch.to(device, non_blocking=device.type == "cuda")
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _loader(self, stream: Any, *, ahead: int) -> RunLoader:
        loader = RunLoader(
            stream,
            batch_size=None,  # the stream yields batches
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # its own: a loader must not draw from the generator that training uses
        )
        loader.ahead = ahead
        return loader

    def _place(self) -> tuple[int, int]:
        """Return (rank, world size): 1. the trainer's  2. torch.distributed's  3. alone."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1


def _start_worker(worker: int) -> None:
    """One thread a worker: torch sees to itself; SimpleITK, which TorchIO resamples with, takes every core.

    And no signal ends it that is sent to all of a job's processes.
    """
    import sys

    shield_worker()
    if "SimpleITK" in sys.modules:
        sys.modules["SimpleITK"].ProcessObject.SetGlobalDefaultNumberOfThreads(1)
