"""A manifest and indexes for WebDataset tars that exist already; the tars stay where and as they are.

Each tar is read once from front to back: every sample passes the checks of a build, and what a build would write into
the sample's JSON member stands in the index. An index follows from the tar's bytes and the mapping alone.
"""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

from inflate3d.contracts import SPLITS, AbstractTarget, RawSample, medium_of
from inflate3d.data.raw.keys import key_of
from inflate3d.data.samples.record import check_place
from inflate3d.data.shards.build_progress import BuildProgress
from inflate3d.data.shards.findings import find_noticed, save_noticed
from inflate3d.data.shards.index import CHECKED, Member, ShardIndex, index_file, member_hash
from inflate3d.data.shards.manifest import MANIFEST_FILE, Manifest, ShardEntry
from inflate3d.data.shards.members import as_stored, decode_members, encode_sample
from inflate3d.data.shards.own_files import BESIDE
from inflate3d.data.shards.statistics import measure_shards
from inflate3d.data.shards.survey import survey_shards
from inflate3d.data.shards.tar_mapping import TarMapping, is_array
from inflate3d.data.shards.tar_walk import Found, TarWalk, tar_sha256
from inflate3d.data.shards.writer import locked_folder, reject_message, shard_entry
from inflate3d.errors import InputError, close_names, unknown_name
from inflate3d.remote.address import Address, is_remote, shown
from inflate3d.remote.client import names, size
from inflate3d.sample import IMAGE

log = logging.getLogger(__name__)


def index_tars(
    tars: Sequence[str],
    mapping: TarMapping,
    output: str | Path,
    *,
    num_workers: int = 0,
    max_rejects: int = 0,
    progress: bool = True,
) -> Manifest:
    """Write an index for each tar and the manifest under `output`; return the manifest.

    tars: folders, files, patterns (set/train-*.tar) or addresses (https://host/set/train-{000..099}.tar), all in one
    folder. Indexes that are there already and still fit are kept. InputError: a mapping that does not fit, tars that
    are damaged, two samples of one key, and more than `max_rejects` samples that a build would reject.
    """
    folder, files = find_tars(tars)
    splits = {file: mapping.split(file) for file in files}
    output, keys = Path(output), _Keys()
    entries: list[ShardEntry] = []
    rejects: list[dict[str, str]] = []
    with locked_folder(output), BuildProgress(len(files), progress, unit="tars") as bar:
        _check_output(output, files)
        for file, index in zip(files, _indexes(folder, files, mapping, output, num_workers), strict=True):
            index.save(output / index_file(file))
            keys.add(file, index)
            rejects += index.rejects
            if index.samples:
                entries.append(shard_entry(file, splits[file], index))
            bar.advance(1, index.bytes)
        if len(rejects) > max_rejects or not entries:
            raise InputError(reject_message(mapping.card.name, rejects, max_rejects))
        entries.sort(key=lambda entry: SPLITS.index(entry.split))  # type: ignore[arg-type]
        lies = None if not is_remote(folder) and Path(folder).resolve() == output.resolve() else folder
        manifest = Manifest(mapping.card, tuple(entries), tuple(rejects), {}, lies, mapping.to_dict())
        manifest = replace(manifest, statistics=measure_shards(output, manifest))
        save_noticed(output, find_noticed(output, survey_shards(output, manifest)))
        manifest.save(output)
    if shown(folder) != folder and is_remote(folder):
        log.warning(
            "%s keeps the address of the tars with its password or token; give it to nobody, or name the user in "
            "~/.netrc and index again",
            output / MANIFEST_FILE,
        )
    return manifest


def find_tars(tars: Sequence[str]) -> tuple[str, list[str]]:
    """Return the folder or address that holds them, and their file names, sorted. InputError if there is none."""
    found = [place for text in tars for expanded in _braces(text) for place in _places(expanded)]
    folders, files = (sorted(set(column)) for column in zip(*found, strict=True)) if found else ([], [])
    if not found:
        raise InputError(f"no tar in {', '.join(map(shown, tars))}")
    if len(folders) > 1:
        told = ", ".join(sorted({shown(folder) for folder in folders})[:4])
        raise InputError(
            f"the tars lie in several folders, or have a query each: {told}. Index each folder as a dataset, with one "
            "token for all its tars"
        )
    if strange := [file for file in files if not file.endswith(".tar")]:
        raise InputError(f"{shown(folders[0], strange[0])}: expected a file that ends in .tar; unpack compressed ones")
    return folders[0], files


def index_tar(folder: str, mapping: TarMapping, file: str) -> ShardIndex:
    """Read one tar from front to back and return its index. InputError if the mapping fits no sample of it."""
    walk = TarWalk(folder, file)
    found: list[tuple[str, list[Member] | None]] = []
    records, reasons = [], []
    seen = _Seen(walk.where, mapping)
    for raw_key, members in _samples(walk):
        if not seen.add(raw_key, members):
            continue
        try:
            places, record = _mapped(raw_key, members, mapping)
            records.append(record)
        except (ValueError, EOFError, RecursionError) as fault:
            places = None
            reasons.append(f"{file}: {raw_key.encode(errors='backslashreplace').decode()}: {fault}")
        found.append((raw_key, places))
    seen.check(walk.litter)
    keys = mapping.keys(file, [raw_key for raw_key, _ in found])
    samples = [(key, places) for key, (_, places) in zip(keys, found, strict=True) if places is not None]
    rejected = [key for key, (_, places) in zip(keys, found, strict=True) if places is None]
    rejects = [{"key": key, "reason": reason} for key, reason in zip(rejected, reasons, strict=True)]
    whole = (walk.bytes, walk.sha256, mapping.digest, (0, len(samples) + len(rejects)))
    return ShardIndex(samples, *whole, tuple(rejects), tuple(records))


def _indexes(
    folder: str, files: list[str], mapping: TarMapping, output: Path, num_workers: int
) -> Iterator[ShardIndex]:
    one = partial(_kept_or_new, folder, mapping.to_dict(), output)
    if num_workers < 2 or len(files) < 2:
        yield from map(one, files)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_workers, len(files)), context) as pool:
        try:
            yield from pool.map(one, files)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _kept_or_new(folder: str, mapping: dict[str, Any], output: Path, file: str) -> ShardIndex:
    """Return the index that is there if it was made by this mapping from a tar of these bytes; else make it."""
    checked = TarMapping.from_dict(mapping)
    path = output / index_file(file)
    try:
        index = ShardIndex.decode(path.read_bytes(), where=str(path))
        bytes_now = size(Address.parse(folder) / file) if is_remote(folder) else Path(folder, file).stat().st_size
        # A tar is padded: with labels corrected it keeps its size. Times and inodes lie where files are copied.
        if (index.build, index.bytes) == (checked.digest, bytes_now) and tar_sha256(folder, file) == index.sha256:
            return index
    except (OSError, InputError):
        pass
    return index_tar(folder, checked, file)


# -------------------------------------------------------------------------------------------------- one sample


def _samples(walk: TarWalk) -> Iterator[tuple[str, dict[str, Found]]]:
    """Yield (key, members by suffix) of members that follow each other, as WebDataset does."""
    for key, group in itertools.groupby(walk, lambda found: _split_name(found.name)[0]):
        members: dict[str, Found] = {}
        for found in group:
            suffix = _split_name(found.name)[1]
            if suffix in members:
                raise InputError(f"{walk.where}: member {found.name!r} stands twice; write the tar again")
            members[suffix] = found
        yield key, members


def _split_name(name: str) -> tuple[str, str]:
    """Return (key, suffix): a/b.seg.npy is a/b and seg.npy."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _mapped(raw_key: str, members: dict[str, Found], mapping: TarMapping) -> tuple[list[Member], str]:
    """Return the places of a sample's members, under the names that shards give them, and its JSON record.

    What a value was read from has a place too, marked as CHECKED: if it changes, the record is outdated.
    """
    card, medium = mapping.card, medium_of(mapping.card)
    places: list[Member] = []
    content: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for meaning, text in mapping.members.items():
        if is_array(meaning, card) or meaning in medium.byte_members.values():
            found = _member(members, text, meaning)
            suffix = f"{meaning}.npy" if is_array(meaning, card) else text.rpartition(".")[2]
            content[suffix] = found.content
            places.append(Member(suffix, found.offset, *_size_and_hash(found.content)))
        else:
            values[meaning] = _value(members, text, meaning)
            source = _member(members, text.partition(":")[0], meaning)
            place = Member(CHECKED + text.partition(":")[0], source.offset, *_size_and_hash(source.content))
            places += [place] if place not in places else []
    decoded: dict[str, Any] = decode_members(content)
    decoded |= {n: as_stored(a, is_image=n == IMAGE) for n, a in decoded.items() if isinstance(a, np.ndarray)}
    targets = {name: decoded.pop(name, None) for name in card.targets}
    targets |= {name: _target_value(card.targets[name], name, v) for name, v in values.items() if name in card.targets}
    fields = {name: value for name, value in values.items() if name in medium.fields}
    check_place(fields)
    suffix = next((s for s in content if s in medium.byte_members), "none")
    raw = RawSample(**decoded, video_suffix=suffix, targets=targets, **fields)
    record = encode_sample(raw, card, key=key_of(raw_key))["json"]
    return sorted(places, key=lambda p: p.offset), record.decode()


def _size_and_hash(content: bytes) -> tuple[int, str]:
    return len(content), member_hash(content)


def _member(members: dict[str, Found], suffix: str, meaning: str) -> Found:
    if suffix not in members:
        raise InputError(f"has no member .{suffix} for {meaning}; it has: {', '.join(sorted(members))}")
    return members[suffix]


def _value(members: dict[str, Found], text: str, meaning: str) -> Any:
    """Return a text member, or a field of a JSON member."""
    suffix, _, path = text.partition(":")
    content = _member(members, suffix, meaning).content
    if not path:
        return content[:1000].decode("utf-8-sig").strip()
    value = json.loads(content)
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            known = ", ".join(map(str, value)) if isinstance(value, dict) else repr(value)[:80]
            raise InputError(f".{suffix} has no field {path!r}; it has: {known[:200]}")
        value = value[name]
    return value


def _target_value(target: AbstractTarget, name: str, value: Any) -> Any:
    """Return what a text or a JSON field says of a target: a number's digits are the number."""
    if isinstance(value, str) and value not in target.names:
        for number in (int, float):
            with suppress(ValueError):
                return number(value)
        if target.names:
            raise unknown_name("class", value, target.names, where=name)
    return value


# --------------------------------------------------------------------------------------------------- the whole


@dataclass
class _Seen:
    """What a tar held, for the errors that concern it as a whole."""

    where: str
    mapping: TarMapping
    suffixes: Counter[str] = field(default_factory=Counter)
    keys: set[str] = field(default_factory=set)
    strangers: list[str] = field(default_factory=list)

    def add(self, raw_key: str, members: dict[str, Found]) -> bool:
        """Note a sample; False for members of which the mapping names none: a file of its own such as README.md."""
        self.suffixes.update(members.keys())
        if not members.keys() & {text.partition(":")[0] for text in self.mapping.members.values()}:
            self.strangers += [found.name for found in members.values()]
            return False
        if raw_key in self.keys:
            told = f"the members of {raw_key!r} do not follow each other; sort the tar by name (tar --sort=name)"
            raise InputError(f"{self.where}: {told}")
        self.keys.add(raw_key)
        return True

    def check(self, litter: Sequence[str]) -> None:
        """Refuse a mapping of which a member is in no sample: a wrong name, not a broken sample."""
        if not self.suffixes:
            raise InputError(f"{self.where}: holds no member")
        if self.keys and (strangers := [*litter, *self.strangers]):
            some = ", ".join(map(repr, strangers[:4]))
            log.warning("%s: %d members are of no sample and passed over: %s", self.where, len(strangers), some)
        for meaning, text in self.mapping.members.items():
            suffix = text.partition(":")[0]
            if suffix not in self.suffixes:
                close = close_names(suffix, self.suffixes)
                hint = f"; is {close[0]!r} meant?" if close else ""
                if any(held.endswith(f".{suffix}") for held in self.suffixes):
                    hint = ". As in WebDataset a key ends at the first dot of a name: rename files whose keys hold dots"
                held = ", ".join(f"{s} ({n})" for s, n in self.suffixes.most_common(8))
                raise InputError(
                    f"members.{meaning} is {text!r}: no sample of {self.where} has it. It holds {held}{hint}"
                )


def _check_output(output: Path, files: list[str]) -> None:
    """Refuse a folder with files of another kind; the tars themselves may lie there."""
    ours = {*files, *(index_file(file) for file in files), *BESIDE}
    for path in sorted(output.iterdir()):
        if path.name not in ours and not path.name.startswith(".tmp-"):
            raise InputError(f"{output} holds something else ({path.name}); give an empty or new folder")
    if (path := output / MANIFEST_FILE).exists() and Manifest.load(output).mapping is None:
        raise InputError(f"{path}: these shards were built, and have an index already")
    path.unlink(missing_ok=True)  # it describes indexes that may change now


class _Keys:
    """Every key so far, by its hash; InputError for one that is in two tars."""

    def __init__(self) -> None:
        self._seen: dict[int, str] = {}

    def add(self, file: str, index: ShardIndex) -> None:
        for key, _ in index.samples:
            if (other := self._seen.setdefault(xxh3_64_intdigest(key.encode()), file)) != file:
                raise InputError(f"key {key!r} is in {other} and in {file}; tell them apart: prefix_keys: true")


def _braces(text: str) -> list[str]:
    """Expand {000..099} and {a,b}, as WebDataset does."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", text)
    if found is None:
        return [text]
    if found[3] is not None:
        parts = found[3].split(",")
    else:
        parts = [f"{n:0{len(found[1])}d}" for n in range(int(found[1]), int(found[2]) + 1)]
    return [place for part in parts for place in _braces(text[: found.start()] + part + text[found.end() :])]


def _places(text: str) -> list[tuple[str, str]]:
    """Return (folder, file) of each tar that a folder, a pattern, a path or an address names."""
    if is_remote(text):
        address = Address.parse(text)
        is_pattern = any(c in address.name for c in "*?[")
        files = names(address.parent, address.name) if is_pattern else [address.name]
        return [(address.parent.text, file) for file in files]
    path = Path(text).expanduser().absolute()
    if path.is_dir():
        paths = sorted(path.glob("*.tar"))
    elif any(c in path.name for c in "*?["):
        paths = sorted(path.parent.glob(path.name))
    elif path.is_file():
        paths = [path]
    else:
        raise InputError(f"{path}: no such file")
    return [(str(p.parent), p.name) for p in paths]
