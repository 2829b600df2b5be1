"""safetensors files from outside: the header is checked against the file's size before a byte of data is read."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from inflate3d.errors import InputError

_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4}
_BYTES |= {"F64": 8, "I64": 8, "U64": 8}
FLOATS = frozenset(("F16", "BF16", "F32", "F64"))
_LARGEST_HEADER = 2**25
_MOST_DIMENSIONS = 8


class Stored(NamedTuple):
    """What a header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def read_header(file: Path) -> dict[str, Stored]:
    """Return dtype and shape of every tensor. InputError unless they fit the file to the byte, without gaps."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
            raise _bad(file, f"it begins with {start[:4]!r}, which is no safetensors header")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError) as fault:
            raise _bad(file, f"its header is no JSON: {str(fault)[:80]}") from fault
    if not isinstance(header, dict):
        raise _bad(file, "its header is no mapping")
    spans, found = [], {}
    for name, entry in header.items():
        if name != "__metadata__":
            found[name], span = _entry(file, name, entry)
            spans.append(span)
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise _bad(file, f"its tensors overlap or leave gaps at byte {end}")
        end = last
    if 8 + length + end != size:
        raise _bad(file, f"its tensors have {end} bytes, the file has {size - 8 - length} for them")
    return found


def read_tensors(file: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Return the named tensors (default: all) of a file whose header was checked. InputError if they cannot be read."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in (opened.keys() if names is None else names)}
    except (OSError, SafetensorError, RuntimeError) as fault:
        raise _bad(file, str(fault)[:160]) from fault


def _entry(file: Path, name: str, entry: Any) -> tuple[Stored, tuple[int, int]]:
    keys = {"dtype", "shape", "data_offsets"}
    if not isinstance(entry, Mapping) or set(entry) != keys or entry["dtype"] not in _BYTES:
        raise _bad(file, f"tensor {name[:80]!r} is described by {str(entry)[:80]}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _is_counts(shape) or len(shape) > _MOST_DIMENSIONS or not _is_counts(offsets) or len(offsets) != 2:
        raise _bad(file, f"tensor {name[:80]!r} has shape {str(shape)[:80]} at {str(offsets)[:60]}")
    stored = Stored(entry["dtype"], tuple(shape))
    if stored.numbers * _BYTES[stored.dtype] != offsets[1] - offsets[0]:
        raise _bad(file, f"tensor {name[:80]!r} of shape {list(shape)} cannot have {offsets[1] - offsets[0]} bytes")
    return stored, (offsets[0], offsets[1])


def _is_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _bad(file: Path, why: str) -> InputError:
    return InputError(f"{file} is not a safetensors file: {why}; publish or download it again")
