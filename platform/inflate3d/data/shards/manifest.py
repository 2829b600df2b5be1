"""What a folder of shards says of itself: its card, its shards and what was left out.

`manifest.json` stays small at any number of samples: the keys are in the index file beside each shard, which is opened
only when its shard is. Its last key is the sha256 of the rest: any change is noticed where it is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from inflate3d.contracts import SPLITS, DatasetCard, InputSpec
from inflate3d.errors import InputError
from inflate3d.files import sealed, unsealed, write_whole
from inflate3d.remote.address import Address, is_remote
from inflate3d.remote.client import read

log = logging.getLogger(__name__)
MANIFEST_FORMAT, FIRST_FORMAT = "inflate3d-shards/2", "inflate3d-shards/1"
MANIFEST_FILE = "manifest.json"
_REPEATED = ("name", "media", "targets", "input")
_REPEATED_FIRST = ("name", "kind", "classes", "input")
_KEYS = {"format", "card", "statistics", "rejects", "shards", "tars", "mapping", *_REPEATED, *_REPEATED_FIRST}
_MOST_BYTES = 2**30  # of one that comes over the net


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


@dataclass(frozen=True)
class Manifest:
    """A dataset at rest. `rejects` lists {"key", "reason"}; `statistics` holds what the build measured.

    tars: the folder or address of the tars where they do not lie beside the manifest, and mapping: which of their
    members mean what (both of `platform shards index`).
    """

    card: DatasetCard
    shards: tuple[ShardEntry, ...]
    rejects: tuple[dict[str, str], ...] = ()
    statistics: dict[str, Any] = field(default_factory=dict)
    tars: str | None = None
    mapping: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def input(self) -> InputSpec:
        return self.card.input

    def entries(self, split: str | None = None) -> list[ShardEntry]:
        """Return the shards of one split (None: of all) in order."""
        assert split is None or split in SPLITS, split
        return [s for s in self.shards if split in (None, s.split)]

    def num_samples(self, split: str | None = None) -> int:
        """Return how many samples a split holds (None: all splits together)."""
        return sum(s.samples for s in self.entries(split))

    @cached_property
    def digest(self) -> str:
        """16 hex digits that change when the card or any byte of any shard or index does."""
        content = {"card": self.card.to_dict(), "shards": [asdict(s) for s in self.shards]}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

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
            shards = tuple(_entry(s) for s in data["shards"])
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
            data, has_seal = unsealed(content, keys=_KEYS)
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
        unsealed(content, keys=_KEYS)
    except ValueError as fault:
        return str(fault)
    return None


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
