"""The index beside a shard: which samples it holds and where each member lies, so that any sample is one read away."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import xxhash

from inflate3d.data.manifest import write_whole
from inflate3d.errors import InputError

INDEX_FORMAT = "inflate3d-index/1"
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
    """

    samples: list[tuple[str, list[Member]]]
    bytes: int
    sha256: str
    build: str = ""
    cases: tuple[int, int] = (0, 0)
    rejects: tuple[dict[str, str], ...] = ()

    @cached_property
    def encoded(self) -> _Content:
        """The index file's bytes."""
        return json.dumps({"format": INDEX_FORMAT, **asdict(self)}, separators=(",", ":")).encode()

    def save(self, path: Path) -> None:
        """Write the index file whole, or not at all."""
        write_whole(path, self.encoded)

    @classmethod
    def decode(cls, content: _Content, *, where: str) -> ShardIndex:
        """Read an index file's bytes; InputError names `where`."""
        try:
            data = json.loads(content)
            if data.pop("format") != INDEX_FORMAT:
                raise InputError(f"{where}: not an index of format {INDEX_FORMAT!r}")
            samples = [(key, [Member(*m) for m in members]) for key, members in data.pop("samples")]
            index = cls(samples, **{**data, "cases": tuple(data["cases"]), "rejects": tuple(data["rejects"])})
        except (ValueError, TypeError, KeyError, AttributeError) as fault:
            if isinstance(fault, InputError):
                raise
            raise InputError(f"{where}: damaged index ({fault}); build the shards again") from fault
        return index


def member_hash(content: bytes | memoryview) -> str:
    """Return the hash by which a member's bytes are known."""
    return xxhash.xxh3_64_hexdigest(content)


def index_file(tar_file: str) -> str:
    """Return the name of a shard's index file: train-000000.tar -> train-000000.index.json."""
    return Path(tar_file).stem + ".index.json"
