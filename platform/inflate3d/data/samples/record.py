"""The JSON member of a sample: its values, and the checks of what it says of the sample's place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from inflate3d.errors import InputError


def stored_value(record: Mapping[str, Any], name: str) -> Any:
    """Return the value of a target that is not per voxel; None if it is not known. InputError if it has no place."""
    # Shards of format 1 hold the one label beside what was measured.
    values = record.get("targets", record)
    if not isinstance(values, Mapping):
        raise InputError(f"targets is {str(values)[:80]!r}; expected values by name")
    return values.get(name)


def check_place(record: Mapping[str, Any]) -> None:
    """Raise InputError if spacing_mm is not three positive numbers, or affine not 4x4 numbers, where they are there."""
    spacing, affine = record.get("spacing_mm"), record.get("affine")
    if spacing is not None and not (is_list(spacing, 3) and all(is_number(s) and s > 0 for s in spacing)):
        raise InputError(f"spacing_mm is {str(spacing)[:80]}; expected three numbers above 0")
    rows = affine if affine is not None else []
    if affine is not None and not (
        is_list(rows, 4) and all(is_list(row, 4) and all(map(is_number, row)) for row in rows)
    ):
        raise InputError(f"affine is {str(affine)[:80]}; expected 4x4 numbers")


def is_list(value: Any, length: int) -> bool:
    """Whether a JSON value is a list of that length."""
    return isinstance(value, list) and len(value) == length


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30 and math.isfinite(value)


def is_whole(value: Any, low: int, high: int) -> bool:
    """Whether a JSON value is a whole number from `low` to `high`."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
