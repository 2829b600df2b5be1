"""The index beside a shard: which samples it holds and where each member lies, so that any sample is one read away."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import xxhash

from inflate3d.data.samples.chunked import SUFFIX as CHUNKED_SUFFIX
from inflate3d.errors import InputError
from inflate3d.files import write_whole

INDEX_FORMAT = "inflate3d-index/1"
CHECKED = "="
"""Begins the suffix of a member that a record was read from: its hash must hold, and nothing is decoded."""
# An index file is JSON without spaces. Text holds no bare quote, so these are what they look like wherever they stand.
_HEAD, _TAIL, _BETWEEN = f'{{"format":"{INDEX_FORMAT}","samples":['.encode(), b'],"bytes":', b']],["'
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
            data["records"] = tuple(data.pop("records", ()))
            _check_records(data["records"], data["samples"], where)
            samples = [(key, [Member(*m) for m in members]) for key, members in data.pop("samples")]
            for _, members in samples:
                _places(members, data["bytes"], where)
            return cls(samples, **{**data, "cases": tuple(data["cases"]), "rejects": tuple(data["rejects"])})
        raise AssertionError("unreachable")


class PackedIndex:
    """What a reader keeps of an open shard: the index's own text, of which a sample's part is parsed when it is read.

    Cutting takes a tenth of parsing, and windows hold many shards, of each of which a batch needs few samples.
    """

    def __init__(self, content: bytes, *, where: str) -> None:
        """Take an index file's bytes. InputError names `where`; a sample's own places are checked when it is read."""
        with _told(where):
            if not content.startswith(_HEAD) or _TAIL not in content:
                content = _as_written(content, where)
            samples, _, tail = content.removeprefix(_HEAD).partition(_TAIL)
            data = orjson.loads(_HEAD + _TAIL + tail)
            self._where, self.size = where, int(data["bytes"])
            self.records = [record.encode() for record in data.get("records", ())]
        self._parts = samples[2:-2].split(_BETWEEN) if samples else []
        self.has_chunks = f'{CHUNKED_SUFFIX}"'.encode() in samples
        _check_records(self.records, self, where)

    def __len__(self) -> int:
        return len(self._parts)

    def sample(self, i: int) -> tuple[str, tuple[str, ...], list[int]]:
        """Return sample `i`: its key, its members' suffixes and, in one list, offset, size and hash of each.

        InputError unless each member lies in the tar, behind the one before.
        """
        with _told(self._where):
            key, members = orjson.loads(b'["%b]]' % self._parts[i])
            return key, tuple([m[0] for m in members]), _places(members, self.size, self._where)
        raise AssertionError("unreachable")

    def members(self, i: int) -> list[tuple[str, int, int, int]]:
        """Return (suffix, offset, size, hash as a number) of each member of sample `i`."""
        _, suffixes, places = self.sample(i)
        return list(zip(suffixes, places[::3], places[1::3], places[2::3], strict=True))


def _check_records(records: Sized, samples: Sized, where: str) -> None:
    if records and len(records) != len(samples):
        raise InputError(f"{where}: {len(records)} records for {len(samples)} samples; index the tars again")


def _as_written(content: bytes, where: str) -> bytes:
    """Return an index with other spaces, or another order of keys, as this package writes it."""
    data = orjson.loads(content)
    if data["format"] != INDEX_FORMAT:
        raise InputError(f"{where}: not an index of format {INDEX_FORMAT!r}")
    first = {key: data.pop(key) for key in ("format", "samples", "bytes")}
    return orjson.dumps({**first, **data})


def _places(members: Sequence[Any], size: int, where: str) -> list[int]:
    """Return offset, size and hash of each member in one list. InputError unless they lie in `size` bytes, in order."""
    places: list[int] = []
    end = 0
    for _, offset, length, digest in members:
        if not (end <= offset and length >= 0 and offset + length <= size):
            raise InputError(f"{where}: a member lies outside its tar or overlaps another; build the shards again")
        end = offset + length
        places += (offset, length, int(digest, 16))
    return places


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
