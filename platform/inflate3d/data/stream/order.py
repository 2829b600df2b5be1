"""The order of samples: a pure function of (seed, epoch, shard sizes) with random access.

Each epoch holds every sample exactly once: the shards are permuted, then the samples are permuted inside windows of
`window_shards` consecutive permuted shards. No epoch is ever written out: a call costs O(shards + window).

Epochs follow each other without a seam in one endless stream: stream position g is sample g % N of epoch g // N. Batch
b of size B holds the positions [b * B, (b + 1) * B), across the end of an epoch where it falls there. So the state of a
stream is one integer, and it knows nothing of workers and ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from inflate3d.errors import InputError
from inflate3d.seeds import mix, permutation


class Slots(NamedTuple):
    """Where the samples of consecutive stream positions are; four int64 arrays of one length."""

    epoch: np.ndarray
    position: np.ndarray
    shard: np.ndarray
    number: np.ndarray  # in the shard


class _Epoch(NamedTuple):
    """One epoch's shards in their order; shard k holds the positions starts[k] to starts[k + 1]."""

    shards: np.ndarray
    starts: np.ndarray


class SampleOrder:
    """The endless order of the samples of one dataset split."""

    def __init__(
        self,
        shard_sizes: Sequence[int] | np.ndarray,
        seed: int,
        *,
        window_shards: int = 64,
        numbers: Sequence[np.ndarray] | None = None,
    ) -> None:
        """Take the number of samples of each shard; or, of a fold, which of them count: `numbers`, an array a shard.

        Raises InputError if there is no sample or no window.
        """
        if window_shards < 1:
            raise InputError(f"window_shards is {window_shards}; it must be at least 1")
        self._numbers = None if numbers is None else np.concatenate([*numbers, np.empty(0, np.int64)])
        self.shard_sizes = np.asarray(shard_sizes if numbers is None else [len(n) for n in numbers], dtype=np.int64)
        self.seed = seed
        self.window_shards = window_shards
        self.num_samples = int(self.shard_sizes.sum())
        if self.num_samples == 0:
            raise InputError("there is no sample to order: every shard is empty")
        self._stored_starts = _starts(self.shard_sizes)
        self._epochs: dict[int, _Epoch] = {}  # the last two: a batch may cross an epoch's end
        self._windows: dict[tuple[int, int], np.ndarray] = {}

    def locate(self, epoch: int, position: int) -> tuple[int, int]:
        """Return (shard, index in the shard) of one position of an epoch."""
        shard, index = self.locate_many(epoch, np.array([position]))
        return int(shard[0]), int(index[0])

    def locate_many(self, epoch: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the shards and the indices in them, (n,) each, of n positions 0..num_samples-1 of one epoch."""
        positions = np.asarray(positions, dtype=np.int64)
        if positions.size and (positions.min() < 0 or positions.max() >= self.num_samples):
            raise IndexError(f"positions must lie in 0..{self.num_samples - 1}")
        shards, starts = self._epoch(epoch)
        shuffled = np.empty_like(positions)
        window_starts = starts[:-1][:: self.window_shards]
        window_of = np.searchsorted(window_starts, positions, side="right") - 1
        for window in np.unique(window_of):
            here = window_of == window
            first = window_starts[window]
            shuffled[here] = first + self._window(epoch, int(window))[positions[here] - first]
        slot = np.searchsorted(starts, shuffled, side="right") - 1
        return shards[slot], self._in_shard(shards[slot], shuffled - starts[slot])

    def slots(self, first: int, count: int) -> Slots:
        """Return the samples at the stream positions first..first+count-1."""
        epoch, position = np.divmod(np.arange(first, first + count), self.num_samples)
        shard, index = np.empty_like(position), np.empty_like(position)
        for e in np.unique(epoch):
            here = epoch == e
            shard[here], index[here] = self.locate_many(int(e), position[here])
        return Slots(epoch, position, shard, index)

    def stored(self, number: int) -> tuple[int, int]:
        """Return (shard, index in the shard) of a sample by its number in the order in which it is stored."""
        shard = int(np.searchsorted(self._stored_starts, number, side="right")) - 1
        return shard, int(self._in_shard(shard, number - int(self._stored_starts[shard])))

    def substitute(self, epoch: int, position: int, attempt: int) -> tuple[int, int]:
        """Return the sample that stands in for a broken one at this place; `attempt` counts from 1."""
        return self.stored(mix(self.seed, "substitute", epoch, position, attempt) % self.num_samples)

    def _in_shard(self, shard: Any, index: Any) -> Any:
        """Return the indices in the shards of the samples that count, by their own index among those."""
        return index if self._numbers is None else self._numbers[self._stored_starts[shard] + index].astype(np.int64)

    def _epoch(self, epoch: int) -> _Epoch:
        def draw() -> _Epoch:
            shards = permutation(len(self.shard_sizes), self.seed, "shards", epoch)
            return _Epoch(shards, _starts(self.shard_sizes[shards]))

        return _remember(self._epochs, epoch, draw)

    def _window(self, epoch: int, window: int) -> np.ndarray:
        def draw() -> np.ndarray:
            starts = self._epoch(epoch).starts
            first = window * self.window_shards
            last = min(first + self.window_shards, len(self.shard_sizes))
            return permutation(int(starts[last] - starts[first]), self.seed, "window", epoch, window)

        return _remember(self._windows, (epoch, window), draw)


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)])


def _remember(cache, key, draw, most: int = 2):
    if key not in cache:
        while len(cache) >= most:
            del cache[next(iter(cache))]
        cache[key] = draw()
    return cache[key]
