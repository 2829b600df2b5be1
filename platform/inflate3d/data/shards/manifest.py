"""What a folder of shards says of itself: its card, its shards and what was left out.

`manifest.json` stays small at any number of samples: the keys are in the index file beside each shard, which is opened
only when its shard is. Its last key is the sha256 of the rest: any change is noticed where it is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache, cached_property
from json.encoder import encode_basestring_ascii as _quoted
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inflate3d.contracts import SPLITS, DatasetCard, InputSpec
from inflate3d.data.shards.shard_table import ShardEntry as ShardEntry
from inflate3d.data.shards.shard_table import ShardTable
from inflate3d.errors import InputError
from inflate3d.files import sealed, unsealed, write_whole
from inflate3d.remote.address import Address, is_remote
from inflate3d.remote.client import read

if TYPE_CHECKING:
    from inflate3d.data.shards.folds import Dealt

log = logging.getLogger(__name__)
MANIFEST_FORMAT, FIRST_FORMAT = "inflate3d-shards/2", "inflate3d-shards/1"
MANIFEST_FILE = "manifest.json"
_REPEATED = ("name", "media", "targets", "input")
_REPEATED_FIRST = ("name", "kind", "classes", "input")
_KEYS = {"format", "card", "statistics", "rejects", "shards", "tars", "mapping", *_REPEATED, *_REPEATED_FIRST}
_SHARDS, _SHARDS_END = b'\n "shards": [\n', b"\n ]"  # as JSON with an indent of 1 has it; no text holds a newline
_MOST_BYTES = 2**30  # of one that comes over the net


@dataclass(frozen=True)
class Manifest:
    """A dataset at rest. `rejects` lists {"key", "reason"}; `statistics` holds what the build measured.

    tars: the folder or address of the tars where they do not lie beside the manifest, and mapping: which of their
    members mean what (both of `platform shards index`). dealt: the fold by which a run reads it, which is not saved.
    """

    card: DatasetCard
    shards: Sequence[ShardEntry]
    rejects: tuple[dict[str, str], ...] = ()
    statistics: dict[str, Any] = field(default_factory=dict)
    tars: str | None = None
    mapping: dict[str, Any] | None = None
    dealt: Dealt | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.shards, ShardTable):
            object.__setattr__(self, "shards", ShardTable.of(self.shards))

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def input(self) -> InputSpec:
        return self.card.input

    def entries(self, split: str | None = None) -> ShardTable:
        """Return the shards of one split (None: of all) in order; in a fold those of train and val serve both."""
        assert split is None or split in SPLITS, split
        assert isinstance(self.shards, ShardTable)
        if self.dealt is not None and split in self.dealt.numbers:
            return self.shards.of_split(*self.dealt.numbers)
        return self.shards if split is None else self.shards.of_split(split)

    def numbers(self, split: str) -> Sequence[np.ndarray] | None:
        """Return which samples of each of a split's shards are in it; None: all are."""
        return None if self.dealt is None else self.dealt.numbers.get(split)

    def num_samples(self, split: str | None = None) -> int:
        """Return how many samples a split holds (None: all splits together)."""
        numbers = None if split is None else self.numbers(split)
        return int(self.entries(split).samples.sum()) if numbers is None else sum(map(len, numbers))

    @cached_property
    def digest(self) -> str:
        """16 hex digits that change when the card or any byte of any shard or index does."""
        # Of JSON with sorted keys, a shard at a time: 10^5 of them would be 100 MB of dicts.
        card = json.dumps(self.card.to_dict(), sort_keys=True)
        digest = hashlib.sha256(f'{{"card": {card}, "shards": ['.encode())
        table, before = self.entries(), ""
        texts = (map(_quoted, table.texts(name)) for name in ("file", "index", "index_sha256", "sha256", "split"))
        for size, file, index, index_hash, count, tar_hash, split in _columns(table, *texts):
            digest.update(
                f'{before}{{"bytes": {size}, "file": {file}, "index": {index}, "index_sha256": {index_hash}, '
                f'"samples": {count}, "sha256": {tar_hash}, "split": {split}}}'.encode()
            )
            before = ", "
        digest.update(b"]}")
        return digest.hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as plain JSON values. Name, media, targets and input repeat the card."""
        card = self.card.to_dict()
        indexed = {} if self.mapping is None else {"tars": self.tars, "mapping": self.mapping}
        return {
            "format": MANIFEST_FORMAT,
            **{name: card[name] for name in _REPEATED},
            **indexed,
            "card": card,
            "statistics": self.statistics,
            "rejects": list(self.rejects),
            "shards": [asdict(s) for s in self.shards],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str) -> Manifest:
        """Read a manifest back from JSON values; InputError names `where` and the key that is wrong."""
        if data.get("format") not in (MANIFEST_FORMAT, FIRST_FORMAT):
            known = f"{MANIFEST_FORMAT!r} and {FIRST_FORMAT!r}"
            raise InputError(f"{where}: format is {data.get('format')!r}; this version reads {known}")
        try:
            shards = data["shards"]
            if not isinstance(shards, ShardTable):
                shards = ShardTable.of(map(_entry, shards))
            card = DatasetCard.from_dict(data["card"])
            statistics = dict(data["statistics"])
            if data["format"] == FIRST_FORMAT and "class_samples" in statistics:
                samples = {"class_samples": statistics.pop("class_samples")}
                statistics["targets"] = {name: samples for name in card.targets}
            indexed = _told_tars(data.get("tars"), where), data.get("mapping")
            manifest = cls(card, shards, tuple(data["rejects"]), statistics, *indexed)
        except (KeyError, TypeError, AttributeError) as fault:
            raise InputError(f"{where}: key missing or of a wrong type: {fault}. Build the shards again") from fault
        for name in _REPEATED if data["format"] == MANIFEST_FORMAT else _REPEATED_FIRST:
            if json.dumps(data.get(name)) != json.dumps(data["card"].get(name)):
                raise InputError(f"{where}: {name!r} differs from the card's; it was edited. Build the shards again")
        return manifest

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """Read folder/manifest.json; where there is none, the InputError names the command that makes it."""
        if is_remote(folder):
            return cls._load_remote(Address.parse(str(folder)) / MANIFEST_FILE)
        path = Path(folder) / MANIFEST_FILE
        build = f"platform shards build DATASET --root RAW --output {folder} (see: platform datasets list)"
        if not path.is_file():
            state = "the build was not finished" if Path(folder).is_dir() else "no such folder"
            raise InputError(f"no shards in {folder}: {state}, {MANIFEST_FILE} is missing. Build them:\n  {build}")
        try:
            content = path.read_bytes()
        except OSError as fault:
            raise InputError(f"{path}: {fault.strerror}") from fault
        return cls._decode(content, where=str(path), remedy=f"Build the shards again:\n  {build}")

    @classmethod
    def _load_remote(cls, address: Address) -> Manifest:
        content = read(address, limit=_MOST_BYTES, fault=_fault)
        return cls._decode(content, where=str(address), remedy="Tell who publishes it")

    @classmethod
    def _decode(cls, content: bytes, *, where: str, remedy: str) -> Manifest:
        try:
            data, has_seal = unsealed(content, keys=_KEYS, parse=_parse)
        except ValueError as fault:
            raise InputError(f"{where}: damaged or edited: {fault}. {remedy}") from fault
        manifest = cls.from_dict(data, where=where)
        if not has_seal:
            _say_unsealed(where)
        return manifest

    def save(self, folder: str | Path) -> Path:
        """Write folder/manifest.json whole, or not at all; return its path."""
        path = Path(folder) / MANIFEST_FILE
        write_whole(path, sealed(self.to_dict()))
        return path


def _fault(content: bytes) -> str | None:
    """Return what is wrong with a manifest's bytes."""
    try:
        unsealed(content, keys=_KEYS, parse=_parse)
    except ValueError as fault:
        return str(fault)
    return None


def _parse(content: bytes) -> Any:
    """Parse a manifest; the shards of one that this package wrote as a table, without a dict for each."""
    start = content.find(_SHARDS) + len(_SHARDS)
    end = content.find(_SHARDS_END, start)
    if start < len(_SHARDS) or end < 0:
        return json.loads(content)
    try:
        table = ShardTable.parse(content, start, end)
    except (ValueError, KeyError, TypeError):
        return json.loads(content)  # one by one, so that the error names what is wrong
    data = json.loads(content[: start - 1] + content[end + 1 :])
    data["shards"] = table
    return data


def _columns(table: ShardTable, file: Any, index: Any, index_hash: Any, tar_hash: Any, split: Any) -> Any:
    """Give a row a shard, in the order of the sorted keys."""
    return zip(table.numbers("bytes"), file, index, index_hash, table.numbers("samples"), tar_hash, split, strict=True)


@cache
def _say_unsealed(where: str) -> None:
    log.info("%s has no hash over itself, as an older version wrote it: build the shards again to add one", where)


def _told_tars(tars: Any, where: str) -> str | None:
    """Return where a manifest says that its tars lie; one that came over the net must not name a local folder."""
    if tars is not None and not isinstance(tars, str):
        raise InputError(f"{where}: tars is {tars!r}; expected a folder or an address")
    if tars is not None and is_remote(where) and not is_remote(tars):
        raise InputError(f"{where}: its tars lie in the local folder {tars!r}; index them by their own address")
    return tars


def _entry(data: Mapping[str, Any]) -> ShardEntry:
    entry = ShardEntry(**{f.name: data[f.name] for f in fields(ShardEntry)})
    for field_name in ("samples", "bytes"):
        if type(value := getattr(entry, field_name)) is not int or value < 0:
            raise InputError(f"manifest: {field_name} of a shard is {value!r}; expected a whole number")
    for field_name in ("file", "index", "sha256", "index_sha256", "split"):
        if not isinstance(value := getattr(entry, field_name), str):
            raise InputError(f"manifest: {field_name} of a shard is {value!r}; expected a text")
    for name in (entry.file, entry.index):
        # A manifest may come from elsewhere; it must not name files outside its folder.
        if Path(name).name != name or name in ("", ".", ".."):
            raise InputError(f"manifest: {name!r} is no plain file name")
    if entry.split not in SPLITS:
        raise InputError(f"manifest: shard {entry.file!r} has split {entry.split!r}; allowed: {', '.join(SPLITS)}")
    return entry
