"""Which samples each step may see: the validation split taken from train, and labelled shares of the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inflate3d.contracts import Split
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.data.samples.record import stored_value
from inflate3d.data.shards.reader import ShardReader
from inflate3d.data.stream.order import SampleOrder, Slots
from inflate3d.seeds import mix, permutation

Place = tuple[int, int]


@dataclass(frozen=True)
class Listed:
    """A sample of a split: its place (shard, index in the shard), and its record without voxels."""

    key: str
    place: Place
    label: int
    group: str


class PickedOrder(SampleOrder):
    """The endless order of some samples of a split, given by their places."""

    def __init__(self, places: Sequence[Place], seed: int) -> None:
        super().__init__([len(places)], seed)
        self.places = np.asarray(places, dtype=np.int64).reshape(-1, 2)

    def slots(self, first: int, count: int) -> Slots:
        """Return the samples at these stream positions, by their own places."""
        slots = super().slots(first, count)
        shard, number = self.places[slots.number].T
        return slots._replace(shard=shard, number=number)

    def stored(self, number: int) -> Place:
        """Return the place of a sample by its number among the picked ones."""
        shard, index = self.places[number]
        return int(shard), int(index)


def list_samples(reader: ShardReader, target: str | None) -> list[Listed]:
    """Return the samples of a split in the order in which they are stored; reads the records alone.

    target: the one whose classes they have, of which those without are left out; None: all, and all of class -1.
    """
    found = []
    for shard in range(len(reader.entries)):
        for index, key in enumerate(reader.keys(shard)):
            record = reader.record(shard, index)
            label = -1 if target is None else stored_value(record, target)
            if label is not None:
                found.append(Listed(key, (shard, index), int(label), str(record.get("group") or key)))
    return found


def carve(samples: Sequence[Listed], *, val_fraction: float, seed: int) -> tuple[list[Listed], list[Listed]]:
    """Return (to train on, to choose by): a seeded split with no group in both and every class in both."""
    rule = SplitRule(val_fraction=val_fraction, seed=seed)
    splits: Mapping[str, Split] = rule.assign(
        [s.key for s in samples], groups=[s.group for s in samples], labels=[s.label for s in samples]
    )
    return [s for s in samples if splits[s.key] == "train"], [s for s in samples if splits[s.key] == "val"]


def labelled_share(samples: Sequence[Listed], fraction: float, *, seed: int) -> list[Listed]:
    """Return the samples whose labels may be used: the share of every class, at least one, drawn by the seed.

    A smaller share is part of every larger one of the same seed.
    """
    chosen: set[str] = set()
    for label in sorted({s.label for s in samples}):
        of_class = [s for s in samples if s.label == label]
        order = permutation(len(of_class), mix(seed, "labels", label))
        chosen |= {of_class[i].key for i in order[: math.ceil(fraction * len(of_class) - 1e-9)]}
    return [s for s in samples if s.key in chosen]
