"""A build in parts, one a job of a SLURM array, and how finished parts become one folder of shards.

Part i of n takes the i-th n-th of every split's cases and is a build of its own in a folder of its own, so it goes on
where it stopped. Merging links the shards into place, writes the manifest, then removes the parts; what else lies in
their folders stays.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from inflate3d.contracts import SPLITS, Case
from inflate3d.data.shards.findings import find_noticed, save_noticed
from inflate3d.data.shards.index import index_file
from inflate3d.data.shards.manifest import MANIFEST_FILE, Manifest, ShardEntry
from inflate3d.data.shards.own_files import remove_own_files
from inflate3d.data.shards.reader import read_index
from inflate3d.data.shards.statistics import measure_shards
from inflate3d.data.shards.survey import survey_shards
from inflate3d.errors import InputError
from inflate3d.files import file_sha256

_FOLDER = re.compile(r"part-(\d{5})-of-(\d{5})")


@dataclass(frozen=True)
class Part:
    """Part `number` of `count`, from 1 on."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count <= 99_999:
            raise InputError(f"part is {self.number}/{self.count}; expected I/N with I from 1 to N, at most 99999")

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read "3/64". Raises InputError for anything else."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if found is None:
            raise InputError(f"part is {text!r}; expected I/N, such as 3/64")
        return cls(int(found[1]), int(found[2]))

    def folder(self, output: Path) -> Path:
        """Return where this part is built. Raises InputError if the whole is there already."""
        if (output / MANIFEST_FILE).exists():
            raise InputError(f"{output} holds merged shards already; remove the folder or give another")
        return output / f"part-{self.number:05d}-of-{self.count:05d}"

    def take(self, cases: Sequence[Case]) -> list[Case]:
        """Return this part's share of each split, in order; the shares of all parts are the whole."""
        taken = []
        for split in SPLITS:
            own = [case for case in cases if case.split == split]
            taken += own[len(own) * (self.number - 1) // self.count : len(own) * self.number // self.count]
        return taken


def merge_parts(output: str | Path, *, max_rejects: int = 0) -> Manifest:
    """Join the finished parts in `output` to one folder of shards and return its manifest; again, if it was killed.

    InputError: a part is missing or unfinished, cards differ, a key is in two parts, more rejects than allowed.
    """
    output = Path(output)
    folders = sorted(p for p in output.iterdir() if _FOLDER.fullmatch(p.name)) if output.is_dir() else []
    if not (output / MANIFEST_FILE).exists():
        _link(output, _checked(output, folders), max_rejects)
    manifest = Manifest.load(output)
    for folder in folders:
        remove_own_files(folder)
        with suppress(OSError):  # somebody's own files are there
            folder.rmdir()
    return manifest


def _checked(output: Path, folders: list[Path]) -> dict[Path, Manifest]:
    counts = {int(p.name[-5:]) for p in folders}
    if len(counts) != 1:
        raise InputError(
            f"{output}: holds parts of {sorted(counts)}; expected those of one platform shards build --part I/N"
        )
    count = counts.pop()
    missing = [i for i in range(1, count + 1) if not (Part(i, count).folder(output) / MANIFEST_FILE).is_file()]
    if missing:
        raise InputError(
            f"{output}: parts {missing[:10]} of {count} are not finished; build them: --part {missing[0]}/{count}"
        )
    manifests = {folder: Manifest.load(folder) for folder in folders}
    first = next(iter(manifests.values()))
    for folder, manifest in manifests.items():
        if manifest.card != first.card:
            raise InputError(
                f"{folder}: its card differs from the first part's; build all parts with the same arguments"
            )
    return manifests


def _link(output: Path, parts: dict[Path, Manifest], max_rejects: int) -> None:
    rejects = tuple(r for manifest in parts.values() for r in manifest.rejects)
    if len(rejects) > max_rejects:
        named = "; ".join(f"{r['key']}: {r['reason'].splitlines()[0][:200]}" for r in rejects[:4])
        raise InputError(f"{output}: {len(rejects)} cases rejected, allowed: {max_rejects} (max_rejects): {named}")
    entries, builds = [], set[str]()
    for split in SPLITS:
        number = 0
        for folder, manifest in parts.items():
            for entry in manifest.entries(split):
                builds.add(read_index(folder, entry).build)
                if len(builds) > 1:
                    raise InputError(f"{folder}: was built from other cases or limits than the parts before it")
                entries.append(_place(folder, entry, output, f"{split}-{number:06d}.tar"))
                number += 1
    if not entries:
        raise InputError(f"{output}: the parts hold no sample")
    manifest = Manifest(next(iter(parts.values())).card, tuple(entries), rejects)
    save_noticed(output, find_noticed(output, survey_shards(output, manifest)))
    replace(manifest, statistics=measure_shards(output, manifest)).save(output)


def _place(folder: Path, entry: ShardEntry, output: Path, name: str) -> ShardEntry:
    """Give a part's shard its name among all: a second name for the same bytes, so that a kill loses nothing."""
    for old, new in ((entry.file, name), (entry.index, index_file(name))):
        _make_room(output / new, folder / old)
        try:
            os.link(folder / old, output / new)
        except OSError:  # a file system without hard links
            shutil.copyfile(folder / old, output / f".tmp-{new}")
            (output / f".tmp-{new}").replace(output / new)
    return replace(entry, file=name, index=index_file(name))


def _make_room(place: Path, part: Path) -> None:
    """Remove what a killed merge of this part put there. InputError for a file of other bytes: another build's."""
    if place.is_file() and (place.samefile(part) or file_sha256(place) == file_sha256(part)):
        place.unlink()
    elif place.exists():
        raise InputError(f"{place}: is not of these parts; move it, or build the parts into another folder")
