"""The index beside a shard: which samples it holds and where each member lies, so that any sample is one read away."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import xxhash

from inflate3d.data.samples.chunked import SUFFIX as CHUNKED_SUFFIX
from inflate3d.errors import InputError
from inflate3d.files import write_whole

INDEX_FORMAT = "inflate3d-index/1"
CHECKED = "="
"""Begins the suffix of a member that a record was read from: its hash must hold, and nothing is decoded."""
_Content = bytes  # ShardIndex has a field of this name


class Member(NamedTuple):
    """One file in the tar: suffix after the key ("image.npy"), offset and size of its bytes, xxh3_64 of them in hex."""

    suffix: str
    offset: int
    size: int
    hash: str


@dataclass(frozen=True)
class ShardIndex:
    """Samples of one shard, and what a later build needs to keep the shard as it is.

    samples: (key, members) in the tar's order. bytes, sha256: the whole tar. build: digest of what was to be built.
    cases: [start, stop) among the split's cases, rejects included. rejects: {"key", "reason"} of these cases.
    records: the JSON of each sample where the tar itself does not hold it (`platform shards index`).
    """

    samples: list[tuple[str, list[Member]]]
    bytes: int
    sha256: str
    build: str = ""
    cases: tuple[int, int] = (0, 0)
    rejects: tuple[dict[str, str], ...] = ()
    records: tuple[str, ...] = ()

    @cached_property
    def encoded(self) -> _Content:
        """The index file's bytes."""
        content = {"format": INDEX_FORMAT, **asdict(self)}
        if not self.records:
            del content["records"]
        return json.dumps(content, separators=(",", ":")).encode()

    def save(self, path: Path) -> None:
        """Write the index file whole, or not at all."""
        write_whole(path, self.encoded)

    @classmethod
    def decode(cls, content: _Content, *, where: str) -> ShardIndex:
        """Read an index file's bytes; InputError names `where`."""
        with _told(where):
            data = orjson.loads(content)
            if data.pop("format") != INDEX_FORMAT:
                raise InputError(f"{where}: not an index of format {INDEX_FORMAT!r}")
            records = data.pop("records", [])
            PackedIndex(data["samples"], data["bytes"], records, where=where)  # every place is checked
            data["records"] = tuple(records)
            samples = [(key, [Member(*m) for m in members]) for key, members in data.pop("samples")]
            return cls(samples, **{**data, "cases": tuple(data["cases"]), "rejects": tuple(data["rejects"])})
        raise AssertionError("unreachable")


class PackedIndex:
    """What a reader keeps of an open shard: the places alone, in 24 bytes a member, since windows hold many shards."""

    def __init__(
        self, samples: list[tuple[str, list[Any]]], size: int, records: Sequence[str] = (), *, where: str
    ) -> None:
        """Take (key, members) of a tar of `size` bytes. Raises InputError unless every member lies in it."""
        self.records = [record.encode() for record in records]
        if records and len(records) != len(samples):
            raise InputError(f"{where}: {len(records)} records for {len(samples)} samples; index the tars again")
        self.keys = [key for key, _ in samples]
        shapes = [tuple([m[0] for m in found]) for _, found in samples]
        known = {shape: shape for shape in shapes}
        self._suffixes = [known[shape] for shape in shapes]  # shared: most samples of a shard have the same members
        members = list(itertools.chain.from_iterable(found for _, found in samples))
        hashes = np.frombuffer(bytes.fromhex("".join([m[3] for m in members])), ">u8")
        rows = np.array([m[1:3] for m in members], np.int64).reshape(-1, 2)
        ends = rows.sum(1)
        if len(hashes) != len(rows) or rows.min(initial=0) < 0 or ends.max(initial=0) > size:
            raise InputError(f"{where}: a member lies outside its tar or has no hash; build the shards again")
        starts = np.cumsum([0, *map(len, shapes)])
        follows = np.ones(len(rows), bool)
        follows[starts[:-1][starts[:-1] < len(rows)]] = False  # the first of each sample
        if (rows[1:, 0] < ends[:-1])[follows[1:]].any():
            raise InputError(f"{where}: members overlap or are out of order; build the shards again")
        self.size = size
        table = np.column_stack([rows.astype(np.uint64), hashes.astype(np.uint64)])
        self._places = table.reshape(-1).data  # of which a slice becomes a list faster than an array's does
        self._starts = (3 * starts).tolist()
        self.has_chunks = any(suffix.endswith(CHUNKED_SUFFIX) for shape in known for suffix in shape)

    @classmethod
    def decode(cls, content: bytes, *, where: str) -> PackedIndex:
        """Read an index file's bytes; InputError names `where`."""
        with _told(where):
            data = orjson.loads(content)
            if data["format"] != INDEX_FORMAT:
                raise InputError(f"{where}: not an index of format {INDEX_FORMAT!r}")
            return cls(data["samples"], data["bytes"], data.get("records", ()), where=where)
        raise AssertionError("unreachable")

    def places(self, i: int) -> tuple[tuple[str, ...], list[int]]:
        """Return the suffixes of sample `i` and, in one list, offset, size and hash of each of its members."""
        return self._suffixes[i], self._places[self._starts[i] : self._starts[i + 1]].tolist()

    def members(self, i: int) -> list[tuple[str, int, int, int]]:
        """Return (suffix, offset, size, hash as a number) of each member of sample `i`."""
        suffixes, places = self.places(i)
        return list(zip(suffixes, places[::3], places[1::3], places[2::3], strict=True))


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Turn what a damaged index makes Python raise into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError) as fault:
        raise InputError(f"{where}: damaged index ({fault}); build the shards again") from fault


def member_hash(content: bytes | memoryview) -> str:
    """Return the hash by which a member's bytes are known."""
    return xxhash.xxh3_64_hexdigest(content)


def index_file(tar_file: str) -> str:
    """Return the name of a shard's index file: train-000000.tar -> train-000000.index.json."""
    return Path(tar_file).stem + ".index.json"
