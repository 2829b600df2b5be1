"""What raw layouts share about files: required places, known suffixes, names and labels."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from inflate3d.contracts import SPLITS
from inflate3d.data.raw.text import read_text
from inflate3d.errors import InputError, close_names

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".3gp", ".ts", ".wmv")
_NO_CLASS = re.compile(r"(ima?ge?s?|labels?|masks?|seg\w*|annotations?)_?(tr|ts|train|val|test)?", re.IGNORECASE)
VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".npy")


def require_folder(path: str | Path, *, where: str, holds: str) -> Path:
    """Return `path` as an absolute Path; InputError if it is not a folder; it says what the folder should hold."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder.absolute()
    if folder.exists():
        raise InputError(f"{where}: {str(folder)!r} is a file; expected the folder that holds {holds}")
    beside = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
    close = close_names(folder.name, beside)
    hint = f"; close names: {', '.join(map(repr, close))}" if close else ""
    raise InputError(f"{where}: no folder {str(folder)!r}; expected the folder that holds {holds}{hint}")


def require_file(path: str | Path, *, where: str, holds: str) -> Path:
    """Return `path` as an absolute Path; InputError if there is no such file; it lists the neighbours."""
    file = Path(path).expanduser()
    if not file.is_file():
        here = sorted(p.name for p in file.parent.iterdir())[:6] if file.parent.is_dir() else []
        beside = f"; beside it: {', '.join(here)}" if here else ""
        raise InputError(f"{where}: no file {str(file)!r}; expected {holds}{beside}")
    return file.absolute()


def visible(folder: Path, pattern: str) -> list[Path]:
    """Return what matches a pattern below a folder, sorted, without hidden files and what lies in hidden folders.

    Links to folders are followed; what lies in one folder is returned once, though several links lead there.
    """
    found = sorted(glob.glob(pattern, root_dir=folder, recursive=True), key=lambda path: (path.count(os.sep), path))
    homes = {parent: os.path.realpath(folder / parent) for parent in {os.path.dirname(path) for path in found}}
    first: dict[tuple[str, str], str] = {}
    for path in found:
        parent, name = os.path.split(path)
        first.setdefault((homes[parent], name), path)
    return [folder / path for path in sorted(first.values())]


def class_folders(root: Path, suffixes: Sequence[str]) -> tuple[str, ...]:
    """Return the classes of a folder that holds a folder of files a class, perhaps below train, val and test.

    () for any other: fewer than two classes, files beside the folders, or folders called as images and masks are.
    """
    paths = [p.relative_to(root).parts for p in visible(root, "**/*") if p.name.lower().endswith(tuple(suffixes))]
    if paths and {parts[0] for parts in paths} <= set(SPLITS) and any(len(parts) == 3 for parts in paths):
        paths = [parts[1:] for parts in paths]
    classes = sorted({parts[0] for parts in paths})
    if len(classes) < 2 or not all(len(parts) == 2 for parts in paths) or any(map(_NO_CLASS.fullmatch, classes)):
        return ()
    return tuple(classes)


def read_json(path: Path, *, where: str) -> dict[str, Any]:
    """Return the JSON object in `path`; InputError with the line if it is not one. Encodings: see `read_text`."""
    content = _json(path, where)
    if not isinstance(content, dict):
        raise InputError(f"{where}: {path} holds a {type(content).__name__}; expected a JSON object {{...}}")
    return content


def read_json_list(path: Path, *, where: str) -> list[Any]:
    """Return the JSON list in `path`; otherwise as read_json."""
    content = _json(path, where)
    if not isinstance(content, list):
        raise InputError(f"{where}: {path} holds a {type(content).__name__}; expected a JSON list [...]")
    return content


def _json(path: Path, where: str) -> Any:
    try:
        return json.loads(read_text(path), object_pairs_hook=lambda pairs: _once(pairs, path))
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: {path} is not valid JSON: {error}") from error


def _once(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    """Return the object; InputError for a key that it holds twice, of which json would keep the last."""
    if len(found := dict(pairs)) < len(pairs):
        doubled = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise InputError(f"{path}: {doubled!r} is there twice in one object; leave one out")
    return found


def stem(path: str | Path, suffixes: Iterable[str] = VOLUME_SUFFIXES) -> str:
    """Return the file's name without its (possibly double) suffix: 'liver_1.nii.gz' -> 'liver_1'.

    Only `suffixes` are cut: the folder of a DICOM series may be called 1.2.840.1 or 1.2.840.2.
    """
    name = Path(path).name
    known = next((s for s in suffixes if name.lower().endswith(s)), "")
    return name[: len(name) - len(known)] if known else name


def as_names(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return names given as a list or as one comma-separated string (what a command line gives)."""
    if value is None:
        return ()
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(str(p).strip() for p in parts if str(p).strip())
