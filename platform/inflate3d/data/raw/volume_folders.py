"""Rows for volumes that lie somewhere below a folder, joined with a table that may know more of them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from inflate3d.data.raw.files import require_file, stem
from inflate3d.data.raw.listed_volumes import COLUMNS
from inflate3d.data.raw.name_patterns import first_group
from inflate3d.data.raw.tables import Row, read_table
from inflate3d.errors import InputError


def units_of(values: Sequence[str]) -> dict[str, str]:
    """Return the unit of each column of numbers: ("age:years", "score") -> {"age": "years", "score": ""}."""
    return {name: unit for name, _, unit in (entry.partition(":") for entry in values)}


def folder_rows(
    paths: Sequence[str],
    root: Path,
    *,
    csv: str | None,
    values: Sequence[str],
    patterns: Mapping[str, str | None],
    where: str,
) -> tuple[list[Row], Path]:
    """Return a row for each path (relative to root), in order, and the file that messages name.

    csv: a table below root with the column image (a path, or a name that only one path ends in) and perhaps label,
    split, group, key and the columns of `values`; a volume that it leaves out is of unknown label. patterns: of a
    column (group, label, split) that the table does not fill: the first group of what is found in the path.
    InputError names a row without a volume, and a path in which a pattern finds nothing.
    """
    units = units_of(values)
    rows = {path: Row(0, {"image": path, "label": "", **dict.fromkeys(units, "")}) for path in paths}
    file = root
    if csv is not None:
        file = require_file(root / csv, where=where, holds="a CSV with the column image")
        allowed = (*(c for c in COLUMNS if c != "mask"), *units)
        by_name = _names(paths)
        for row in read_table(file, required=("image", *units), allowed=allowed):
            path = _path_of(row, by_name, f"{file} line {row.line}")
            if rows[path].line:
                raise InputError(f"{file} lines {rows[path].line} and {row.line} are both of {path}; leave one out")
            rows[path] = Row(row.line, {**row, "image": path})
    for column, pattern in patterns.items():
        if pattern is not None:
            for path, row in rows.items():
                row[column] = row.get(column) or _found(path, column, pattern, where)
    if any(row.get("split") for row in rows.values()) and (
        bare := [p for p, row in rows.items() if not row.get("split")]
    ):
        raise InputError(f"{file}: gives splits, but none for {bare[0]} ({len(bare)} in all); add them")
    return list(rows.values()), file


def _names(paths: Sequence[str]) -> dict[str, list[str]]:
    """Return the paths by what may name them: the whole path, its last part, and that without its ending."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        name = PurePosixPath(path).name
        for text in dict.fromkeys((path, name, stem(name))):
            found[text].append(path)
    return found


def _path_of(row: Row, by_name: dict[str, list[str]], at: str) -> str:
    named = str(PurePosixPath(row["image"])) if row["image"] else ""
    found = by_name.get(named, [])
    if len(found) == 1 or named in found:
        return named if named in found else found[0]
    if found:
        raise InputError(f"{at}: {row['image']!r} is the name of {', '.join(found[:3])}; give the path below the root")
    raise InputError(f"{at}: no volume {row['image']!r} below the root; correct the path, or remove the line")


def _found(path: str, column: str, pattern: str, where: str) -> str:
    try:
        searched = re.compile(pattern)
    except re.error as fault:
        raise InputError(f"{where}: {column}_pattern {pattern!r} is no regular expression: {fault}") from fault
    return first_group(searched, path, option=f"{column}_pattern", where=where)
