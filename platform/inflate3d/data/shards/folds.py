"""Folds: the cases of train and val dealt anew into parts, of which one is held out; no shard is built again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from inflate3d.data.raw.files import read_json_list
from inflate3d.data.raw.keys import key_of
from inflate3d.data.shards.manifest import Manifest
from inflate3d.data.shards.reader import ShardReader
from inflate3d.errors import InputError, close_names, unknown_name
from inflate3d.files import write_whole

NNUNET_SEED = 12345
"""Of nnU-Net's own five folds (nnunetv2/utilities/crossval_split.py)."""
_DEALT = ("train", "val")


@dataclass(frozen=True)
class Fold:
    """Which part is held out, from 0, `of` how many; or of those that a `file` lists, nnU-Net's splits_final.json.

    Whole groups (patients) are dealt by `seed`. Where each case is its own group these are scikit-learn's
    KFold(of, shuffle=True, random_state=seed) over the sorted keys: nnU-Net's folds, for `of` 5 and the default seed.
    """

    number: int
    of: int | None = None
    file: str | None = None
    seed: int = NNUNET_SEED

    @classmethod
    def from_dict(cls, values: Any, *, where: str) -> Fold:
        """Read one from plain values; InputError begins with `where`."""
        known = [f.name for f in fields(cls)]
        if not isinstance(values, Mapping):
            raise InputError(f"{where} is {values!r}; expected {{number: 0, of: 5}} or {{number: 0, file: PATH}}")
        for key in values:
            if key not in known:
                raise unknown_name("key", str(key), known, where=where)
        for key in ("number", "of", "seed"):
            if (value := values.get(key)) is not None and (type(value) is not int or value < 0):
                raise InputError(f"{where}.{key} is {value!r}; expected a whole number")
        if "number" not in values or (values.get("of") is None) == (values.get("file") is None):
            raise InputError(f"{where} is {dict(values)}; expected number, and either of or file: {{number: 0, of: 5}}")
        if (of := values.get("of")) is not None and not (of > 1 and values["number"] < of):
            raise InputError(f"{where} is {dict(values)}; of must be at least 2, and numbers go from 0 to of - 1")
        return cls(**values)


@dataclass(frozen=True)
class Dealt:
    """numbers: of train and of val, which samples of each shard of both. splits: every fold, as in splits_final.json.
    number: the fold that is taken.
    """

    numbers: Mapping[str, Sequence[np.ndarray]]
    splits: Sequence[Mapping[str, Sequence[str]]]
    number: int

    def __str__(self) -> str:
        """What tells one fold from another: its number, and a hash of what is in it."""
        content = json.dumps(self.splits[self.number]).encode()
        return f"{self.number} of {len(self.splits)} ({hashlib.sha256(content).hexdigest()[:16]})"

    def save(self, path: Path) -> None:
        """Write every fold as nnU-Net's splits_final.json, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(self.splits, indent=4).encode())


def dealt(reader: ShardReader, values: Mapping[str, Any], *, where: str) -> Manifest:
    """Return the reader's manifest with train and val as a fold has them, told by the values of Fold; test stays.

    Reads the JSON member of each sample, for its group. InputError begins with `where`: fewer groups than parts, a file
    that lists other cases, and a group in both splits.
    """
    fold, manifest = Fold.from_dict(values, where=where), reader.manifest
    table = manifest.entries().of_split(*_DEALT)
    merged = ShardReader(reader.folder, replace(manifest, shards=table), cache=reader.cache)
    keys = [merged.keys(shard) for shard in range(len(table))]
    group_of = {
        key: str(merged.record(shard, i).get("group") or key)
        for shard, of in enumerate(keys)
        for i, key in enumerate(of)
    }
    merged.close()
    splits = _of_file(fold, group_of, where) if fold.file is not None else _parts(fold, group_of, where)
    held_out = set(splits[fold.number]["val"])
    numbers = {
        split: [np.flatnonzero([(key in held_out) == (split == "val") for key in of]) for of in keys]
        for split in _DEALT
    }
    return replace(manifest, dealt=Dealt(numbers, splits, fold.number))


def _parts(fold: Fold, group_of: Mapping[str, str], where: str) -> list[dict[str, list[str]]]:
    """Return all folds of groups dealt by the seed, near to equal numbers of groups in each."""
    assert fold.of is not None
    groups = sorted(set(group_of.values()))
    if len(groups) < fold.of:
        raise InputError(f"{where}: {len(groups)} groups cannot be dealt into {fold.of} parts; take fewer")
    order = np.arange(len(groups))
    np.random.RandomState(fold.seed).shuffle(order)  # the legacy generator, whose stream never changes
    found = []
    for part in np.array_split(order, fold.of):
        held_out = {groups[i] for i in part}
        val = sorted(key for key, group in group_of.items() if group in held_out)
        found.append({"train": sorted(set(group_of) - set(val)), "val": val})
    return found


def _of_file(fold: Fold, group_of: Mapping[str, str], where: str) -> list[dict[str, list[str]]]:
    """Return the folds of a splits_final.json by the keys of the cases. InputError where it does not fit the cases."""
    path = Path(str(fold.file)).expanduser()
    if not path.is_file():
        raise InputError(f"{where}.file: no file {str(path)!r}; expected nnU-Net's splits_final.json")
    listed = read_json_list(path, where=f"{where}.file")
    for entry in listed:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(s), list) for s in _DEALT):
            raise InputError(
                f'{where}.file: {path} holds {str(entry)[:60]}; expected [{{"train": [...], "val": [...]}}]'
            )
    if fold.number >= len(listed):
        raise InputError(f"{where}.number is {fold.number}; {path} holds {len(listed)} folds, from 0")
    splits = [{s: sorted(key_of(str(name)) for name in entry[s]) for s in _DEALT} for entry in listed]
    told, own = f"{where}.file: {path}, fold {fold.number}", splits[fold.number]
    _check_cases(own, group_of, told)
    return splits


def _check_cases(split: Mapping[str, Sequence[str]], group_of: Mapping[str, str], where: str) -> None:
    """Refuse a split that lists a case twice or that is not there, leaves one out, or divides a group."""
    both = [*split["train"], *split["val"]]
    if strange := [key for key in both if key not in group_of]:
        close = close_names(strange[0], list(group_of))
        hint = f"; close names: {', '.join(map(repr, close))}" if close else ""
        raise InputError(f"{where}: no case {strange[0]!r} ({len(strange)} in all) in train and val{hint}")
    if doubled := sorted(key for key in set(both) if both.count(key) > 1):
        raise InputError(f"{where}: case {doubled[0]!r} is listed twice; list each once, in train or in val")
    if missing := sorted(set(group_of) - set(both)):
        raise InputError(f"{where}: case {missing[0]!r} ({len(missing)} in all) is in neither train nor val; add it")
    trained = {group_of[key] for key in split["train"]}
    if divided := [key for key in split["val"] if group_of[key] in trained]:
        group = group_of[divided[0]]
        raise InputError(f"{where}: group {group!r} is in train and, as {divided[0]!r}, in val; keep it in one of them")
