"""A split file: which keys are for training, for validation and for the test, in JSON."""

from __future__ import annotations

import json
from pathlib import Path

from inflate3d.contracts import SPLITS, Split
from inflate3d.errors import InputError, unknown_name


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
