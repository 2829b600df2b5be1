"""The index of published 3D weights: short names, where each lies, and the hash that it must have. No torch.

Entries come from the packaged pretrained.json, some of whose weights lie in the package too, from entry points of the
group `inflate3d.pretrained` (each names a mapping, or a function that returns one) and from the JSON files that
INFLATE3D_INDEX lists; later ones win.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

from inflate3d.contracts import zoo_names
from inflate3d.errors import InputError, unknown_name
from inflate3d.models.publication.layout import PREFIX
from inflate3d.models.publication.places import SCHEMES, has_place

FORMAT = "inflate3d-index/1"
VARIABLE = "INFLATE3D_INDEX"
GROUP = "inflate3d.pretrained"
_KEYS = ("source", "sha256", "title", "licence", "commercial_use", "kind", "base")
_PACKAGED = Path(str(files("inflate3d.models").joinpath("pretrained.json")))
_NAME = re.compile(r"[a-z0-9_]+\.[a-z0-9_]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """One short name. source: any name that create_model takes; sha256: of the directory's SHA256SUMS.

    The other fields are for people who choose: what it is, and what its licence allows.
    """

    name: str
    source: str
    sha256: str | None = None
    title: str = ""
    licence: str = "unknown"
    commercial_use: bool | None = None
    kind: str = ""
    base: str = ""


def entries() -> dict[str, Entry]:
    """Return every entry by its short name. InputError names the index that is wrong, and how."""
    found = _read(_packaged(), _PACKAGED.name, _PACKAGED.parent)
    for point in _points(tuple(sys.path)):
        value = point.load()
        found.update(_read(value() if callable(value) else value, f"entry point {point.name!r} of {GROUP}", None))
    for path in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        found.update(_read_file(Path(path).expanduser()))
    return found


def find_entry(name: str) -> Entry | None:
    """Return the entry of a short name; None where no index has it, or can have it.

    InputError for weights that came with an earlier version of the package: it says where they went.
    """
    if not _NAME.fullmatch(name):
        return None
    if (found := entries().get(name)) is None and (went := _packaged().get("moved", {}).get(name)) is not None:
        raise InputError(f"{name} comes with the package no longer: {went}")
    return found


def is_published(name: str) -> bool:
    """Whether a name means published 3D weights: by itself, by an index, or as a zoo's."""
    return has_place(name) or find_entry(name) is not None or name in zoo_names()


def list_pretrained(filter: str = "*") -> list[str]:
    """Return the short names of published 3D weights that match a wildcard."""
    return sorted(name for name in entries() if fnmatch(name, filter))


def _packaged() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(_PACKAGED.read_text(encoding="utf-8"))
    return content


@cache
def _points(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the entry points that are installed along a path: looking through every package takes 10 ms."""
    return tuple(entry_points(group=GROUP))


def _read_file(path: Path) -> dict[str, Entry]:
    where = f"{VARIABLE}: {path}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise InputError(f"{where} cannot be read ({fault}); correct the variable, or unset it") from fault
    return _read(content, where, path.parent)


def _read(content: Any, where: str, folder: Path | None) -> dict[str, Entry]:
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        written = content.get("format") if isinstance(content, Mapping) else type(content).__name__
        raise InputError(f"{where}: format is {written!r}; this version reads {FORMAT!r}")
    models = content.get("models")
    if not isinstance(models, Mapping):
        raise InputError(f"{where}: 'models' must map names to {{source, sha256, ...}}")
    return {name: _entry(name, values, f"{where}: {name}", folder) for name, values in models.items()}


def _entry(name: str, values: Any, where: str, folder: Path | None) -> Entry:
    if not _NAME.fullmatch(name):
        raise InputError(f"{where}: expected ARCHITECTURE.TAG in small letters, such as 'resnet50_3d.multitask_v1'")
    if not isinstance(values, Mapping) or not isinstance(values.get("source"), str):
        raise InputError(f"{where}: 'source' is missing, such as 'hf-hub:org/name@revision'")
    for key in values:
        if key not in _KEYS:
            raise unknown_name("key", str(key), _KEYS, where=where)
    source, sha256 = values["source"], values.get("sha256")
    if not has_place(source):
        raise InputError(f"{where}: source is {source!r}; expected hf-hub:, local-dir:, {', '.join(SCHEMES)}")
    if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise InputError(f"{where}: sha256 is {sha256!r}; expected that of the directory's SHA256SUMS, 64 digits")
    if source.startswith(PREFIX) and folder is not None:
        source = PREFIX + str(folder / Path(source.removeprefix(PREFIX)).expanduser())
    return Entry(name, source, sha256, **{k: v for k, v in values.items() if k not in ("source", "sha256")})
