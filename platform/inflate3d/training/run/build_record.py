"""What a config's `build:` made: so that shards of other data, or of another split, are not taken for those wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inflate3d.data.shards.manifest import Manifest
from inflate3d.discover import find
from inflate3d.errors import InputError
from inflate3d.files import read_sealed, sealed, write_whole


def write_build_record(folder: Path, build: Mapping[str, Any]) -> None:
    """Note, beside a folder of shards, which `build:` has just made it."""
    record = {"manifest": Manifest.load(folder).digest, "build": _settings(build)}
    write_whole(_file(folder), sealed(record))


def check_build_record(folder: Path, build: Mapping[str, Any]) -> None:
    """Raise InputError that says what differs if the shards in `folder` were made by another `build:` than this one.

    Shards without a record, or rebuilt since by `platform shards build`, are taken as they are. A damaged record is an
    InputError that names it.
    """
    file = _file(folder)
    if not file.is_file():
        return
    remedy = (
        "It says how these shards were built; if they are those that you want, delete it: they are taken as they are"
    )
    record = read_sealed(file, keys=("manifest", "build"), remedy=remedy)
    if not isinstance(record.get("build"), dict) or "manifest" not in record:
        raise InputError(f"{file}: damaged: keys are missing. {remedy}")
    if record["manifest"] != Manifest.load(folder).digest:
        return
    before, now = record["build"], _settings(build)
    changes = [
        f"{key} was {before.get(key, 'absent')!r}, is now {now.get(key, 'absent')!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if changes:
        raise InputError(
            f"the shards in {folder} were built otherwise: {'; '.join(changes)}. "
            "Remove that folder, give another (--data.root DIR), or take the shards as they are: "
            f"--data.datasets.{folder.name}.build null"
        )


def _settings(build: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide what is in the shards, flat, as JSON gives them back."""
    flat = {
        "class_path": find("datasets", build["class_path"]).class_path,
        **build.get("init_args", {}),
        **({"encode": build["encode"]} if build.get("encode") else {}),
    }
    return json.loads(json.dumps(flat, default=str))  # type: ignore[no-any-return]


def _file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.build.json")  # a folder of shards holds nothing else
