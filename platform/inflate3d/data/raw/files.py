"""What raw layouts share about files: required places, known suffixes, and keys made from names."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from inflate3d.errors import InputError, close_names, unknown_name

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".3gp", ".ts", ".wmv")
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


def read_json(path: Path, *, where: str) -> dict[str, Any]:
    """Return the JSON object in `path`; InputError with the line if it is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: {path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{where}: {path} holds a {type(content).__name__}; expected a JSON object {{...}}")
    return content


def stem(path: str | Path, suffixes: Iterable[str] = VOLUME_SUFFIXES) -> str:
    """Return the file's name without its (possibly double) suffix: 'liver_1.nii.gz' -> 'liver_1'."""
    name = Path(path).name
    known = next((s for s in suffixes if name.lower().endswith(s)), Path(name).suffix)
    return name[: len(name) - len(known)] if known else name


def case_keys(names: Sequence[str], *, where: str) -> list[str]:
    """Return one shard key per name: any character other than a letter, a digit, '_' or '-' becomes '_'.

    InputError if two names give one key, since a key must name one case.
    """
    keys = [re.sub(r"[^A-Za-z0-9_-]", "_", name) for name in names]
    first: dict[str, str] = {}
    for key, name in zip(keys, names, strict=True):
        if not key:
            raise InputError(f"{where}: a case has an empty name; every case needs its own name")
        if key in first:
            raise InputError(f"{where}: {first[key]!r} and {name!r} both give the key {key!r}; rename one of them")
        first[key] = name
    return keys


def as_names(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return names given as a list or as one comma-separated string (what a command line gives)."""
    if value is None:
        return ()
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(str(p).strip() for p in parts if str(p).strip())


def label_names(table: dict[str, Any], *, where: str) -> tuple[str, ...]:
    """Return class names in index order from {"0": "background"} (index -> name) or {"background": 0} (name -> index).

    InputError for region labels (lists), an `ignore` label and indices with gaps: each names the entry.
    """
    by_index: dict[int, str] = {}
    for key, value in table.items():
        index, name = (key, value) if not isinstance(value, int) and str(key).isdigit() else (value, key)
        if isinstance(index, list | tuple):
            raise InputError(f"{where}: label {name!r} is a region {index}; write plain labels, one integer per class")
        if str(name).lower() == "ignore":
            raise InputError(f"{where}: the label 'ignore' is not supported; map those voxels to a class first")
        if not str(index).isdigit():
            raise InputError(f"{where}: label {name!r} has index {index!r}; expected an integer from 0")
        by_index[int(index)] = str(name)
    if len(by_index) < 2 or sorted(by_index) != list(range(len(by_index))) or len(by_index) != len(table):
        raise InputError(
            f"{where}: labels {table} must be numbered 0, 1, 2, ... without gaps, with at least two classes"
        )
    return tuple(by_index[i] for i in range(len(by_index)))


def read_table(path: Path, *, required: Sequence[str], allowed: Sequence[str] | None = None) -> list[dict[str, str]]:
    """Return the rows of a CSV with a header, values stripped; blank lines are skipped.

    InputError for a missing column, an unknown one (if `allowed` is given), a row of the wrong length (with its line),
    and an empty file.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [c.strip() for c in next(reader, [])]
            lines = [(reader.line_num, [v.strip() for v in row]) for row in reader if any(v.strip() for v in row)]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from error
    if absent := [c for c in required if c not in header]:
        raise InputError(f"{path}: no column {absent[0]!r}; its header is {header}; needed: {list(required)}")
    for column in header if allowed is not None else []:
        if column not in (allowed or ()):
            raise unknown_name("column", column, allowed or (), where=str(path))
    for number, row in lines:
        if len(row) != len(header):
            raise InputError(
                f"{path} line {number}: {len(row)} values for {len(header)} columns; quote values with commas"
            )
    if not lines:
        raise InputError(f"{path} lists no cases; write one row per case below the header {header}")
    return [dict(zip(header, row, strict=True)) for _, row in lines]
