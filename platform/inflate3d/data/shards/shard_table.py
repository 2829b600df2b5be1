"""The shards of a manifest as a table of 250 bytes a shard, of which a row becomes an entry when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, overload

import numpy as np
import orjson

from inflate3d.contracts import SPLITS

_CHUNK_BYTES = 2**18
_END = (
    b"\n  },\n"  # between two entries of a manifest, as `json.dumps(..., indent=1)` writes it; no text holds a newline
)


@dataclass(frozen=True)
class ShardEntry:
    """One shard: names of the tar and of its index in the manifest's folder, size in bytes, and the hashes of both."""

    file: str
    split: str
    samples: int
    bytes: int
    sha256: str
    index: str
    index_sha256: str


_NAMES = [f.name for f in fields(ShardEntry)]
_NUMBERS = ("samples", "bytes")


class ShardTable(Sequence[ShardEntry]):
    """Entries in order. `columns` holds a _Texts, or int64 of shape (shards,), by the names of ShardEntry's fields."""

    def __init__(self, columns: dict[str, Any], rows: np.ndarray) -> None:
        """rows: those of the columns that count, in order."""
        self._columns, self._rows = columns, rows

    @classmethod
    def of(cls, entries: Iterable[ShardEntry]) -> ShardTable:
        """Return the table of some entries."""
        entries = list(entries)
        columns = {name: _joined([_part(name, [getattr(e, name) for e in entries])]) for name in _NAMES}
        return cls(columns, np.arange(len(entries)))

    @classmethod
    def parse(cls, text: bytes, start: int, end: int) -> ShardTable:
        """Read the entries that stand there in a manifest, as JSON with an indent of 1, some at a time.

        ValueError, KeyError or TypeError where one is not as a manifest has it, without saying which.
        """
        parts: dict[str, list[Any]] = {name: [] for name in _NAMES}
        for entries in _chunks(text, start, end):
            for name in _NAMES:
                values = [entry[name] for entry in entries]
                _check(name, values)
                parts[name].append(_part(name, values))
        columns = {name: _joined(parts.pop(name)) for name in _NAMES}
        return cls(columns, np.arange(len(columns["samples"])))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, i: int) -> ShardEntry: ...
    @overload
    def __getitem__(self, i: slice) -> ShardTable: ...
    def __getitem__(self, i: int | slice) -> ShardEntry | ShardTable:
        if isinstance(i, slice):
            return ShardTable(self._columns, self._rows[i])
        row = self._rows[i]
        values = {name: self._columns[name][row] for name in _NAMES}
        return ShardEntry(**{**values, **{name: int(values[name]) for name in _NUMBERS}})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardTable) and len(self) == len(other) and all(map(_same, self, other))

    def of_split(self, *splits: str) -> ShardTable:
        """Return the shards of these splits, in order."""
        return ShardTable(self._columns, self._rows[np.array([s in splits for s in self.texts("split")], bool)])

    @property
    def samples(self) -> np.ndarray:
        """Samples of each shard, int64."""
        found: np.ndarray = self._columns["samples"][self._rows]
        return found

    def numbers(self, name: str) -> list[int]:
        """Return a column of whole numbers."""
        return list(self._columns[name][self._rows].tolist())

    def texts(self, name: str) -> Iterator[str]:
        """Give a column of texts, one by one."""
        column = self._columns[name]
        return (column[row] for row in self._rows.tolist())


class _Texts:
    """Many texts as one, and the length of each."""

    def __init__(self, text: str, lengths: np.ndarray) -> None:
        self.text, self.lengths = text, lengths
        self._ends = np.cumsum(np.concatenate([[0], lengths])).data  # of which a number is read faster than an array's

    def __getitem__(self, i: int) -> str:
        return self.text[self._ends[i] : self._ends[i + 1]]

    def __reduce__(self) -> Any:
        return _Texts, (self.text, self.lengths)


def _part(name: str, values: list[Any]) -> Any:
    if name in _NUMBERS:
        return np.array(values, np.int64)
    return _Texts("".join(values), np.fromiter(map(len, values), np.int64, len(values)))


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return _Texts("".join(p.text for p in parts), np.concatenate([p.lengths for p in parts]))


def _chunks(text: bytes, start: int, end: int) -> Iterator[list[dict[str, Any]]]:
    while start < end:
        cut = text.find(_END, start + _CHUNK_BYTES, end)
        cut = end if cut < 0 else cut + len(_END) - 2  # the comma and the newline
        yield orjson.loads(b"[%b]" % text[start:cut])
        start = cut + 1


def _check(name: str, values: list[Any]) -> None:
    """ValueError or TypeError where a value of a column is none that a manifest may have."""
    if name in _NUMBERS:
        if {type(value) for value in values} - {int} or min(values, default=0) < 0:
            raise ValueError(name)
        return
    "".join(values)  # TypeError where one is no text
    if name == "split" and not {*SPLITS}.issuperset(values):
        raise ValueError(name)
    # A manifest may come from elsewhere; it must not name files outside its folder.
    if name in ("file", "index") and ("/" in "".join(values) or not {"", ".", ".."}.isdisjoint(values)):
        raise ValueError(name)


def _same(a: ShardEntry, b: ShardEntry) -> bool:
    return a == b
