"""The order of samples: every sample once an epoch, from any position, whatever the world size."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inflate3d.data.stream.batches import TrainStream
from inflate3d.data.stream.mixture import Mixture
from inflate3d.data.stream.order import SampleOrder
from inflate3d.errors import InputError
from inflate3d.seeds import mix, permutation

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum)
SEEDS = st.integers(0, 2**64 - 1)


def samples(order: SampleOrder, first: int, count: int) -> list[tuple[int, int]]:
    slots = order.slots(first, count)
    return list(zip(slots.shard.tolist(), slots.number.tolist(), strict=True))


@given(SIZES, SEEDS, st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_each_epoch_holds_every_sample_exactly_once(sizes, seed, window, epoch):
    order = SampleOrder(sizes, seed, window_shards=window)
    shard, index = order.locate_many(epoch, np.arange(sum(sizes)))
    assert sorted(zip(shard.tolist(), index.tolist(), strict=True)) == [
        (s, i) for s, n in enumerate(sizes) for i in range(n)
    ]


@given(SIZES, SEEDS, st.integers(1, 6), st.integers(0, 50), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_random_access_equals_reading_in_order(sizes, seed, window, first, count):
    total = sum(sizes)
    order = SampleOrder(sizes, seed, window_shards=window)
    one_by_one = [order.locate(*divmod(g, total)) for g in range(first, first + count)]
    assert samples(SampleOrder(sizes, seed, window_shards=window), first, count) == one_by_one


class ToyReader:
    """Local shards, as far as a stream asks."""

    remote = None


class ToySource:
    """A source whose samples are their places alone."""

    def __init__(self, name: str, sizes: list[int], seed: int, batch_size: int) -> None:
        self.name, self.batch_size, self.reader = name, batch_size, ToyReader()
        self.order = SampleOrder(sizes, seed, window_shards=2)

    def sample(self, epoch: int, position: int, shard: int, index: int) -> tuple[int, int, int]:
        return epoch, shard, index


Place = tuple[int, int, int]
Shape = tuple[int, int]  # ranks, workers of each


def global_batches(
    sizes: dict[str, list[int]], seed: int, shape: Shape, start: int, count: int
) -> list[tuple[str, list[Place]]]:
    """What all ranks together see: each rank's DataLoader takes from its workers in turn, as PyTorch's does."""
    world_size, workers = shape
    ranks = []
    for rank in range(world_size):
        running = []
        for worker in range(max(1, workers)):
            sources: Any = {name: ToySource(name, n, seed, 4) for name, n in sizes.items()}
            mixture = Mixture({name: 1 + i for i, name in enumerate(sizes)})
            stream = TrainStream(sources, mixture, start=start, rank=rank, world_size=world_size)
            running.append(in_worker(stream, worker, workers))
        ranks.append([next(running[b % len(running)]) for b in range(count)])
    joined = []
    for parts in zip(*ranks, strict=True):
        assert len({(p[0], p[1]) for p in parts}) == 1  # one micro-batch of one dataset on every rank
        joined.append((parts[0][1], [place for p in parts for place in p[2]]))
    return joined


def in_worker(stream: TrainStream, worker: int, workers: int) -> Iterator[tuple[int, str, list[Place]]]:
    """The stream as DataLoader's worker process runs it; 0 workers: in the process itself."""
    info = None if workers == 0 else SimpleNamespace(id=worker, num_workers=workers)

    def collate(makers: Any, source: Any, memory: Any, *, micro_batch: int) -> Any:
        return micro_batch, source.name, [make() for make in makers]

    it = iter(stream)
    while True:
        with (
            patch("inflate3d.data.stream.batches.get_worker_info", lambda: info),
            patch("inflate3d.data.stream.batches.collate", collate),
        ):
            batch: Any = next(it)
        yield batch


SHAPES = st.tuples(st.sampled_from([1, 2, 4]), st.integers(0, 3))
MIXTURES = st.dictionaries(st.sampled_from("abc"), SIZES, min_size=1, max_size=3)


@pytest.mark.slow
@given(MIXTURES, SEEDS, SHAPES, SHAPES, st.integers(0, 20), st.integers(0, 12))
@settings(max_examples=50, deadline=None)
def test_another_world_size_and_worker_count_in_mid_epoch_continue_the_sequence(
    sizes, seed, before, after, start, stop
):
    first = global_batches(sizes, seed, before, start, stop)
    then = global_batches(sizes, seed, after, start + stop, 8)
    assert first + then == global_batches(sizes, seed, (1, 0), start, stop + 8)


@given(SIZES, SEEDS, SHAPES, SHAPES, st.integers(0, 30))
@settings(max_examples=30, deadline=None)
def test_no_sample_is_lost_or_repeated_in_an_epoch_where_the_world_size_changes(sizes, seed, before, after, stop):
    total = sum(sizes)
    batches = max(0, -(-2 * total // 4) - stop)
    seen = global_batches({"a": sizes}, seed, before, 0, stop) + global_batches(
        {"a": sizes}, seed, after, stop, batches
    )
    flat = [place for _, places in seen for place in places]
    assert len(flat) >= 2 * total
    for epoch in range(len(flat) // total):
        expected = [(epoch, s, i) for s, n in enumerate(sizes) for i in range(n)]
        assert sorted(flat[epoch * total : (epoch + 1) * total]) == expected


def test_samples_stay_inside_their_window_of_shards():
    order = SampleOrder([5] * 12, seed=1, window_shards=3)
    shard, _ = order.locate_many(0, np.arange(60))
    windows = [set(shard[i : i + 15].tolist()) for i in range(0, 60, 15)]
    assert all(len(w) == 3 for w in windows)
    assert set.union(*windows) == set(range(12))


def test_epochs_and_seeds_differ_and_repeat():
    def first_epoch(seed: int, epoch: int) -> list[tuple[int, int]]:
        return samples(SampleOrder([10] * 5, seed), epoch * 50, 50)

    assert first_epoch(0, 0) == first_epoch(0, 0)
    assert len({tuple(first_epoch(s, e)) for s in (0, 1) for e in (0, 1, 7)}) == 6


def test_the_order_is_this_one_for_ever():
    # Frozen: a run must go on in the same order after any upgrade.
    assert mix(0, "order", "k400") == 332483410740895662
    assert permutation(8, 0).tolist() == [6, 4, 1, 3, 0, 7, 5, 2]
    assert samples(SampleOrder([3, 2, 4], seed=0), 7, 4) == [(2, 0), (1, 1), (2, 0), (2, 3)]


def test_a_window_is_drawn_once_and_an_order_pickles():
    order = pickle.loads(pickle.dumps(SampleOrder([1000] * 100, seed=0, window_shards=10)))
    for b in range(0, 1000, 50):
        order.slots(b * 64, 64)
    assert len(order._windows) <= 2
    assert len(order._epochs) <= 2


def test_any_place_among_a_hundred_million_samples_costs_about_one_sort_of_the_shards_and_a_window():
    sizes = np.full(100_000, 1000)

    def seconds(position: int) -> float:
        order = SampleOrder(sizes, seed=0)  # what a resumed run has: nothing drawn yet
        start = time.thread_time()  # what it costs, not how busy the machine is
        order.slots(position, 256)
        assert sum(w.size for w in order._windows.values()) <= 2 * 64_000  # the epoch is not written out
        return time.thread_time() - start

    def sorting() -> float:
        words = np.random.PCG64(0).random_raw(164_000)
        start = time.thread_time()
        np.argsort(words)
        return time.thread_time() - start

    for position in (10, 10**8, 10**12 + 12345):  # about 3 ms on an idle core: docs/LOG.md
        assert min(seconds(position) for _ in range(5)) < 3 * min(sorting() for _ in range(5))


def test_a_fast_sort_gives_the_stable_order():
    words = np.random.PCG64(mix(3)).random_raw(5000)
    assert permutation(5000, 3).tolist() == np.argsort(words, kind="stable").tolist()


@given(SIZES, SEEDS, st.integers(0, 100), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_a_substitute_exists_and_depends_on_the_attempt_alone(sizes, seed, epoch, position):
    order = SampleOrder(sizes, seed)
    found = {order.substitute(epoch, position, attempt) for attempt in range(1, 200)}
    assert all(0 <= i < sizes[s] for s, i in found)
    assert len(found) > 1 or sum(sizes) == 1
    assert order.substitute(epoch, position, 3) == SampleOrder(sizes, seed).substitute(epoch, position, 3)


def test_stored_numbers_run_through_the_shards():
    order = SampleOrder([2, 0, 3], seed=0)
    assert [order.stored(n) for n in range(5)] == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]


def test_nothing_to_order_is_refused():
    with pytest.raises(InputError, match="every shard is empty"):
        SampleOrder([0, 0], seed=0)
    with pytest.raises(InputError, match="window_shards is 0"):
        SampleOrder([1], seed=0, window_shards=0)
