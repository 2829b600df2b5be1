"""How the cases of a dataset without official splits are dealt into train and val: by a rule, or by a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inflate3d.contracts import SPLITS, Split
from inflate3d.errors import InputError, unknown_name


@dataclass(frozen=True)
class SplitRule:
    """A seeded shuffle of groups into train and val, or a split file that lists every case.

    A group (patient, scene) is never in two splits. Where labels are known every class is in both splits if the groups
    allow it, even if val then takes more than its fraction. val_count counts cases and overrides the fraction.
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
        """Return the split of every key; it does not depend on the order of the keys.

        InputError if val would take every case, or if holding out any group would take a class from train.
        """
        if self.split_file is not None:
            return self._from_file(keys)
        want = self.val_count if self.val_count is not None else _share(len(keys), self.val_fraction)
        if want == 0:
            return dict.fromkeys(keys, "train")
        if want >= len(keys):
            raise InputError(f"val_count is {want} of {len(keys)} cases; leave at least one for training")
        group_of = dict(zip(keys, groups if groups is not None else keys, strict=True))
        label_of = dict(zip(keys, labels if labels is not None else [0] * len(keys), strict=True))
        in_val = _choose_groups(group_of, label_of, want, np.random.default_rng(self.seed))
        if not in_val:
            raise InputError(
                f"holding out any group of the {len(keys)} cases would take a class from training; "
                "give a split_file, finer groups, or val_fraction 0"
            )
        return {key: "val" if group_of[key] in in_val else "train" for key in keys}

    def _from_file(self, keys: Sequence[str]) -> dict[str, Split]:
        assert self.split_file is not None
        listed: dict[str, Split] = {k: s for s, ks in read_split_file(self.split_file).items() for k in ks}
        if missing := [k for k in keys if k not in listed]:
            raise InputError(f"{self.split_file}: case {missing[0]!r} ({len(missing)} in all) is in no split; add it")
        if extra := sorted(set(listed) - set(keys)):
            raise InputError(
                f"{self.split_file}: no case {extra[0]!r} ({len(extra)} in all) in this dataset; remove it"
            )
        return {key: listed[key] for key in keys}


def read_split_file(path: str | Path) -> dict[Split, list[str]]:
    """Read {"train": [keys], "val": [keys], "test": [keys]}; a split may be left out, a key may be in one only."""
    path = Path(path)
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as fault:
        raise InputError(f'split file {path}: cannot be read ({fault}); expected {{"train": [keys], ...}}') from fault
    if not isinstance(data, dict) or not all(isinstance(keys, list) for keys in data.values()):
        raise InputError(f'split file {path}: expected {{"train": [keys], "val": [keys]}}')
    seen: dict[str, str] = {}
    for split, keys in data.items():
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS, where=f"split file {path}")
        for key in keys:
            if not isinstance(key, str) or key in seen:
                where = f"in {seen[key]!r} and in {split!r}" if key in seen else f"a {type(key).__name__}"
                raise InputError(f"split file {path}: {key!r} is {where}; each key is one string, listed once")
            seen[key] = split
    return {split: data[split] for split in SPLITS if split in data}


def _share(count: int, fraction: float) -> int:
    """Return the nearest whole number, at least one of two or more cases unless the fraction is 0."""
    return max(1, round(count * fraction)) if fraction > 0 and count > 1 else 0


def _choose_groups(
    group_of: Mapping[str, str], label_of: Mapping[str, int], want: int, generator: np.random.Generator
) -> set[str]:
    """Return the groups of val: about `want` cases, every class in both splits where its groups allow it."""
    members: dict[str, Counter[int]] = {}
    for key in sorted(group_of):
        members.setdefault(group_of[key], Counter())[label_of[key]] += 1
    names = sorted(members)
    shuffled = {names[i]: members[names[i]] for i in generator.permutation(len(names))}
    if any(len(counts) > 1 for counts in members.values()):
        return _mend(_prefix(shuffled, want), shuffled, want)
    # Each group holds one class: every class gives its own share.
    chosen: set[str] = set()
    for label in sorted({label for counts in members.values() for label in counts}):
        of_label = {g: counts for g, counts in shuffled.items() if label in counts}
        total = sum(counts.total() for counts in of_label.values())
        chosen |= _prefix(of_label, want * total / len(group_of))
    return chosen


def _prefix(groups: Mapping[str, Counter[int]], want: float) -> set[str]:
    """Return the first groups whose number of cases is nearest to `want`: at least one group, never all."""
    sizes = np.cumsum([counts.total() for counts in groups.values()])[:-1]
    # The first of two equals wins, so val is not larger than necessary.
    return set(list(groups)[: int(np.argmin(np.abs(sizes - want))) + 1]) if len(sizes) else set()


def _mend(chosen: set[str], groups: Mapping[str, Counter[int]], want: int) -> set[str]:
    """Move or swap groups, best first, until no step brings more classes into both splits, or val nearer to `want`.

    Nothing moves if no class is missing at the start. Swaps are tried among up to 100 groups.
    """
    totals = sum(groups.values(), Counter[int]())

    def cost(val: set[str]) -> tuple[int, int, int]:
        counts = sum((groups[g] for g in val), Counter[int]())
        from_train, from_val = sum(counts[c] >= n for c, n in totals.items()), sum(counts[c] == 0 for c in totals)
        # A class that only one group has belongs to train.
        return from_train + from_val, from_train, abs(counts.total() - want)

    if cost(chosen)[0] == 0:
        return chosen
    while True:
        steps = [{g} for g in groups]
        if len(groups) <= 100:
            steps += [{a, b} for a in groups if a in chosen for b in groups if b not in chosen]
        step = min(steps, key=lambda step: cost(chosen ^ step))
        if cost(chosen ^ step) >= cost(chosen):
            return chosen
        chosen = chosen ^ step
