"""Streams of batches: an endless mixture for training, each sample of a split once for evaluation.

A training batch is a pure function of its number: `TrainStream.batch(m)` is micro-batch m of the run on this rank,
whatever came before, in any process. Workers share the numbers out among themselves; each builds whole batches in the
memory that carries them to the trainer.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from inflate3d.contracts import Stage
from inflate3d.data.samples.chunked import ChunkError
from inflate3d.data.shards.reader import OutdatedIndex, ShardReader
from inflate3d.data.stream.batch_memory import BatchMemory
from inflate3d.data.stream.mixture import Mixture
from inflate3d.data.stream.order import SampleOrder
from inflate3d.data.stream.stream_error import StreamError
from inflate3d.errors import InputError
from inflate3d.remote.address import shown
from inflate3d.sample import Batch, Sample
from inflate3d.seeds import mix

log = logging.getLogger(__name__)
_BATCHES_AHEAD = 16


@dataclass
class Source:
    """One split of one dataset as a stream sees it: where its samples are and what is made of them.

    max_broken: how many different broken samples a process may meet before it stops.
    """

    name: str
    reader: ShardReader
    order: SampleOrder
    stage: Stage
    batch_size: int
    max_broken: int
    broken: dict[tuple[int, int], str] = field(default_factory=dict)

    def sample(self, epoch: int, position: int, shard: int, index: int, out: Tensor | None = None) -> Sample:
        """Return the sample of one place of the order, or the substitute for it if it is broken; see Stage for `out`.

        The substitute is a function of (seed, epoch, position, attempt). Raises StreamError past the budget.
        """
        for attempt in itertools.count(1):
            if (shard, index) not in self.broken:
                try:
                    return self._make(epoch, shard, index, out)
                except OutdatedIndex as fault:  # as many more labels as this one may be wrong
                    raise StreamError(f"dataset {self.name!r}: {fault}") from fault
                except InputError as fault:
                    self._count(shard, index, fault)
            shard, index = self.order.substitute(epoch, position, attempt)
        raise AssertionError("unreachable")

    def _make(self, epoch: int, shard: int, index: int, out: Tensor | None) -> Sample:
        raw = self.reader.sample(shard, index, borrow=True)  # stages copy what they keep
        try:
            return self.stage(raw.key, raw.decode(), mix(self.order.seed, "sample", epoch, raw.key), out)
        except ChunkError as fault:
            raise InputError(f"sample {raw.key!r}: {fault}") from fault

    def _count(self, shard: int, index: int, fault: InputError) -> None:
        self.broken[shard, index] = str(fault)
        reason = " ".join(str(fault).split())
        most = min(self.max_broken, self.order.num_samples - 1)  # one must stand in for the rest
        if len(self.broken) > most:
            raise StreamError(
                f"dataset {self.name!r}: {len(self.broken)} broken samples of {self.order.num_samples}, more than the "
                f"{most} allowed. The last: {reason}. See: platform shards check {shown(self.reader.folder)}"
            )
        log.warning("dataset %r: a substitute stands in for a broken sample: %s", self.name, reason)


class TrainStream(IterableDataset[Batch]):
    """Micro-batches `start`, `start` + 1, ... without end; for a DataLoader with batch_size=None."""

    def __init__(
        self, sources: Mapping[str, Source], mixture: Mixture, *, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        """Take this rank's place among the ranks. Raises InputError if a global batch cannot be shared out evenly."""
        for source in sources.values():
            if source.batch_size % world_size:
                raise InputError(
                    f"data.datasets.{source.name}.batch_size is {source.batch_size}, the global micro-batch; "
                    f"{world_size} ranks cannot share it evenly. Make it a multiple of {world_size}"
                )
        self.sources, self.mixture = dict(sources), mixture
        self.start, self.rank, self.world_size = start, rank, world_size
        self._memory = BatchMemory()

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for micro_batch in itertools.count(self.start + first, step):
            self._prefetch(micro_batch)
            yield self.batch(micro_batch)

    def _prefetch(self, micro_batch: int) -> None:
        """Tell a remote reader which shards the next batches of this dataset need, in the order of their need."""
        name, number = self.mixture.at(micro_batch)
        source = self.sources[name]
        if source.reader.remote is None:
            return
        slots = source.order.slots(number * source.batch_size, _BATCHES_AHEAD * source.batch_size)
        source.reader.prefetch(list(dict.fromkeys(slots.shard.tolist())))

    def batch(self, micro_batch: int) -> Batch:
        """Return this rank's even share of a global micro-batch; the shares of the ranks follow each other."""
        name, number = self.mixture.at(micro_batch)
        source = self.sources[name]
        share = source.batch_size // self.world_size
        slots = source.order.slots(number * source.batch_size + self.rank * share, share)
        numbers = zip(*(column.tolist() for column in slots), strict=True)
        makers = [partial(source.sample, epoch, *place) for epoch, *place in numbers]
        return collate(makers, source, self._memory, micro_batch=micro_batch)


class EvalStream(Dataset[Batch]):
    """Each sample of each source once, over all ranks; batch i of this rank by its number, one dataset a batch.

    Samples come in the order in which they are stored. A rank may have one batch more than another.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        *,
        max_samples: Mapping[str, int | None] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Take at most `max_samples` of a dataset, evenly spaced over its split.

        Raises InputError where there is not a batch for every rank.
        """
        self.sources = dict(sources)
        batches: list[tuple[str, np.ndarray]] = []
        for name, source in sources.items():
            total = source.order.num_samples
            numbers = np.arange(total)
            if (most := (max_samples or {}).get(name)) is not None and most < total:
                numbers = np.arange(most) * total // most
            batches += [(name, part) for part in _parts(numbers, source.batch_size)]
        if len(batches) < world_size:
            raise InputError(
                f"{len(batches)} batches to evaluate ({', '.join(sources)}), {world_size} ranks: each needs one. Lower "
                "data.datasets.NAME.eval_batch_size, take fewer ranks, or leave it out: --trainer.limit_val_batches 0"
            )
        self._batches = batches[rank::world_size]
        self._memory = BatchMemory()

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, i: int) -> Batch:
        name, numbers = self._batches[i]
        source = self.sources[name]
        makers = [partial(source.sample, 0, int(n), *source.order.stored(int(n))) for n in numbers]
        return collate(makers, source, self._memory, micro_batch=-1)


def collate(makers: Sequence[Callable[..., Sample]], source: Source, memory: BatchMemory, *, micro_batch: int) -> Any:
    """Build a batch of what some calls make, in one place.

    All but the first sample, which tells the shape, are made there (`out`). Raises StreamError if shapes differ.
    """
    first = makers[0]()
    place = memory.take(len(makers), first)
    tensors = place.tensors()
    views, spacings, keys = tensors["views"], [], []
    main = next(iter(views))
    for i, make in enumerate(makers):
        sample = make(out=views[main][i]) if i else first
        for name, view in sample.views.items():
            if view.shape != views[name].shape[1:]:
                raise StreamError(_unlike(source, sample, name, tuple(view.shape), tuple(views[name].shape[1:])))
            if view.data_ptr() != views[name][i].data_ptr():
                views[name][i] = view
        for name, value in sample.targets.items():
            tensors["targets"][name][i] = value
        spacings.append(sample.spacing_mm)
        keys.append(sample.key)
    tensors["spacing_mm"][:] = torch.tensor(spacings)
    return place.lend(Batch(keys=keys, dataset=source.name, micro_batch=micro_batch, **tensors))


def _unlike(source: Source, sample: Sample, view: str, shape: tuple[int, ...], others: tuple[int, ...]) -> str:
    return (
        f"dataset {source.name!r}: {view} of sample {sample.key!r} is {shape} along (C, D, H, W), others of its batch "
        f"{others}. Set data.datasets.{source.name}.sample.size, or batch_size 1"
    )


def _parts(numbers: np.ndarray, size: int) -> list[np.ndarray]:
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]
