"""How the cases of a dataset without official splits are dealt into train and val."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inflate3d.contracts import Split
from inflate3d.errors import InputError


@dataclass(frozen=True)
class SplitRule:
    """A seeded shuffle of groups into train and val, or a split file that says it case by case.

    A group (patient, scene) never straddles. Where labels are known every class stands in both splits if the groups
    allow it at all, even if val then takes more than its fraction. val_count, if given, counts cases and wins over the
    fraction.
    """

    val_fraction: float = 0.2
    val_count: int | None = None
    split_file: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise InputError(f"val_fraction is {self.val_fraction}; it must be at least 0 and below 1")
        if self.val_count is not None and self.val_count < 0:
            raise InputError(f"val_count is {self.val_count}; it must be 0 or more")

    def assign(
        self, keys: Sequence[str], *, groups: Sequence[str] | None = None, labels: Sequence[int] | None = None
    ) -> dict[str, Split]:
        """Return the split of every key; the same for every order of the keys. InputError if val would take all."""
        if self.split_file is not None:
            return self._from_file(keys)
        order = sorted(range(len(keys)), key=lambda i: keys[i])
        group_of = {keys[i]: groups[i] if groups is not None else keys[i] for i in order}
        label_of = {keys[i]: labels[i] if labels is not None else 0 for i in order}
        want = self.val_count if self.val_count is not None else round(len(keys) * self.val_fraction)
        if want and want >= len(keys):
            raise InputError(f"val_count is {want} of {len(keys)} cases; leave at least one for training")
        in_val = _choose_groups(group_of, label_of, want, np.random.default_rng(self.seed))
        return {key: "val" if group_of[key] in in_val else "train" for key in keys}

    def _from_file(self, keys: Sequence[str]) -> dict[str, Split]:
        from inflate3d.data.splits import read_split_file

        assert self.split_file is not None
        listed: dict[str, Split] = {k: s for s, ks in read_split_file(self.split_file).items() for k in ks}
        if missing := [k for k in keys if k not in listed]:
            raise InputError(f"{self.split_file}: case {missing[0]!r} ({len(missing)} in all) is in no split; list it")
        if extra := sorted(set(listed) - set(keys)):
            raise InputError(
                f"{self.split_file}: no case {extra[0]!r} ({len(extra)} in all) in this dataset; remove it"
            )
        return {key: listed[key] for key in keys}


def _choose_groups(
    group_of: dict[str, str], label_of: dict[str, int], want: int, generator: np.random.Generator
) -> set[str]:
    """Return the groups of val: a seeded shuffle's prefix nearest to `want` cases, mended until no class is missing."""
    members: dict[str, Counter[int]] = {}
    for key, group in group_of.items():
        members.setdefault(group, Counter())[label_of[key]] += 1
    names = sorted(members)
    shuffled = [names[i] for i in generator.permutation(len(names))]
    sizes = np.cumsum([members[g].total() for g in shuffled])
    # The first prefix wins a tie: val is not larger than it must be.
    count = int(np.argmin(np.abs(np.concatenate([[0], sizes]) - want)))
    chosen = set(shuffled[:count])
    return _mend(chosen, shuffled, members, want) if want else chosen


def _mend(chosen: set[str], shuffled: list[str], members: dict[str, Counter[int]], want: int) -> set[str]:
    """Move or swap groups, best first, while that puts more classes into both splits or brings val nearer to `want`."""
    totals = sum(members.values(), Counter[int]())
    val = sum((members[g] for g in chosen), Counter[int]())

    def cost(counts: Counter[int]) -> tuple[int, int, int]:
        missing_in_train = sum(counts[c] >= n for c, n in totals.items())
        return missing_in_train, sum(counts[c] <= 0 for c in totals), abs(counts.total() - want)

    def moved(groups: tuple[str, ...]) -> Counter[int]:
        counts = Counter(val)
        for g in groups:
            counts.update({c: -n if g in chosen else n for c, n in members[g].items()})
        return counts

    while len(members) > 1 and sum(cost(val)[:2]):
        singles: list[tuple[str, ...]] = [(g,) for g in shuffled]
        swaps = (
            [(a, b) for a in shuffled if a in chosen for b in shuffled if b not in chosen] if len(shuffled) < 99 else []
        )
        best = min(singles + swaps, key=lambda groups: cost(moved(groups)))
        if cost(moved(best)) >= cost(val):
            break
        val = moved(best)
        chosen = chosen ^ set(best)
    return chosen
