"""Which dataset gives each micro-batch: a deterministic weighted schedule with random access.

The weights are turned into whole counts that repeat in a cycle, and a dataset's turns are spread evenly over the cycle:
2 k400 + 1 liver + 1 organ is k400, liver, organ, k400, over and over. Nothing is drawn at random, so that K accumulated
micro-batches hold each dataset's share exactly whenever K is a multiple of the cycle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from inflate3d.errors import InputError, unknown_name

MAX_CYCLE = 10_000
"""Weights whose exact cycle is longer are rounded to multiples of 1 / MAX_CYCLE of the whole (and to at least one)."""


class Mixture:
    """The endless schedule of micro-batches over the datasets."""

    def __init__(self, weights: Mapping[str, float | Fraction]) -> None:
        """Take a weight for each dataset; only their ratios count. Raises InputError unless they are finite and > 0."""
        _check(weights)
        self.names = list(weights)
        self.counts = _whole_counts(list(weights.values()))
        self._turns = _spread(self.counts)
        is_turn = self._turns[:, None] == np.arange(len(self.names))
        self._before = np.cumsum(is_turn, axis=0) - is_turn

    @property
    def cycle(self) -> int:
        """Number of micro-batches after which the schedule repeats."""
        return len(self._turns)

    @property
    def shares(self) -> dict[str, float]:
        """The share of the micro-batches that each dataset gets; they add up to 1."""
        return {name: count / self.cycle for name, count in zip(self.names, self.counts, strict=True)}

    def at(self, micro_batch: int) -> tuple[str, int]:
        """Return the dataset of a micro-batch and how many micro-batches of that dataset came before it."""
        cycles, turn = divmod(micro_batch, self.cycle)
        which = int(self._turns[turn])
        return self.names[which], cycles * self.counts[which] + int(self._before[turn, which])


def tempered(
    weights: Mapping[str, float],
    sizes: Mapping[str, float],
    temperature: float | None,
    *,
    where: str = "data.temperature",
) -> dict[str, float]:
    """Return weight x size^(1 / temperature) for each dataset; None leaves the weights as they are.

    Sizes are above 0; 1 is proportional to them, infinity ignores them. Raises InputError for a temperature or weight
    that is not above 0.
    """
    _check(weights)
    if temperature is None:
        return dict(weights)
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not temperature > 0:
        raise InputError(f"{where} is {temperature!r}; expected a number above 0, or null")
    # Relative to the smallest or the largest, so that whole ratios stay whole and no power overflows.
    own = [sizes[name] for name in weights]
    base = min(own) if temperature >= 1 else max(own)
    return {name: weight * (sizes[name] / base) ** (1 / temperature) for name, weight in weights.items()}


@dataclass(frozen=True)
class Group:
    """Several datasets that are one entry of the mixture: its weight, and the temperature among its members."""

    weight: float = 1.0
    temperature: float | None = None


def grouped(
    weights: Mapping[str, float],
    sizes: Mapping[str, float],
    temperature: float | None,
    *,
    group_of: Mapping[str, str | None],
    groups: Mapping[str, Group],
) -> dict[str, float | Fraction]:
    """Return the weight of each dataset where some are members of groups.

    A group has its own weight, as a dataset as large as all its members would; it falls to them by their own weights
    and the group's temperature. Raises InputError that names the key.
    """
    members: dict[str, list[str]] = {}
    for name in weights:
        group = group_of.get(name)
        if group is not None and group not in groups:
            raise unknown_name("group", group, groups, where=f"data.datasets.{name}.group")
        members.setdefault(f"group {group}" if group else name, []).append(name)
    for group in groups:
        if f"group {group}" not in members:
            raise InputError(f"data.groups.{group}: no dataset is a member; remove it: --data.groups.{group} null")
    _check({g: group.weight for g, group in groups.items()}, "data.groups")
    of_entry = {
        entry: groups[entry.removeprefix("group ")].weight if entry.startswith("group ") else weights[entry]
        for entry in members
    }
    entries = tempered(of_entry, {e: sum(sizes[n] for n in names) for e, names in members.items()}, temperature)
    found: dict[str, float | Fraction] = {}
    for entry, names in members.items():
        if not entry.startswith("group "):
            found[entry] = entries[entry]
            continue
        group = entry.removeprefix("group ")
        own = {n: weights[n] for n in names}
        shares = tempered(own, sizes, groups[group].temperature, where=f"data.groups.{group}.temperature")
        exact = {n: Fraction(str(share)) for n, share in shares.items()}
        found |= {n: Fraction(str(entries[entry])) * share / sum(exact.values()) for n, share in exact.items()}
    return {name: found[name] for name in weights}


def _check(weights: Mapping[str, float | Fraction], where: str = "data.datasets") -> None:
    if not weights and where == "data.datasets":
        raise InputError("data.datasets is empty; name at least one dataset")
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise InputError(
                f"{where}.{name}.weight is {weight}; it must be a finite number above 0. "
                f"To leave a dataset out, set it to null"
            )


def _whole_counts(weights: list[float | Fraction]) -> list[int]:
    exact = [Fraction(str(weight)) for weight in weights]  # str: 0.1 means a tenth, not the nearest binary fraction
    scale = math.lcm(*(f.denominator for f in exact))
    counts = [int(f * scale) for f in exact]
    counts = [count // math.gcd(*counts) for count in counts]
    if sum(counts) <= MAX_CYCLE:
        return counts
    return [max(1, round(f / sum(exact) * MAX_CYCLE)) for f in exact]


def _spread(counts: list[int]) -> np.ndarray:
    """Return the dataset number of each turn: turn j of a dataset with n turns is due at (2j + 1) / n; ties by order.

    The quotient is rounded correctly, so equal fractions compare equal and the order is exact.
    """
    due = np.concatenate([(2 * np.arange(n) + 1) / n for n in counts])
    which = np.repeat(np.arange(len(counts)), counts)
    return which[np.argsort(due, kind="stable")]
