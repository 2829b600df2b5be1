"""metrics.csv as a table: its rows, what of it is damaged, and a run's future taken back. No torch is imported here."""

from __future__ import annotations

import csv
import io
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inflate3d.errors import InputError
from inflate3d.files import set_aside, write_whole

log = logging.getLogger(__name__)
STEP = "step"


@dataclass(frozen=True)
class Table:
    """rows: the whole ones, each with its line. damaged: the lines that were ended and are no rows; 1 is the columns'.

    A line without its end is neither: it is being written, or its writer was killed.
    """

    columns: list[str] = field(default_factory=list)
    rows: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    torn: bool = False


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """Return the rows of a metrics.csv; empty cells are left out. InputError names a damaged line."""
    table = read_table(Path(path))
    if table.damaged:
        raise InputError(f"{path}: line {table.damaged[0]} is damaged; remove it, or put a copy of the file back")
    return [{k: float(v) for k, v in row.items() if v != ""} for _, row in table.rows]


def drop_rows_after(path: str | Path, step: int) -> int:
    """Remove the rows of steps past `step` (a future that is run again) and a torn last line; return how many.

    Damaged lines among the others cannot be made again: this is logged, and the file as it was gets another name.
    """
    path = Path(path)
    table = read_table(path)
    kept = [row for _, row in table.rows if int(row[STEP]) <= step]
    future = next((line for line, row in table.rows if int(row[STEP]) > step), math.inf)
    if lost := [line for line in table.damaged if line < future]:
        told = f"{path}: damaged at line {lost[0]}, {len(lost)} in all"
        log.warning("%s. The run goes on with the others; the file is kept as %s", told, set_aside(path).name)
    dropped = len(table.rows) - len(kept) + len(table.damaged) + table.torn
    if dropped:
        write_table(path, table.columns, kept)
    return dropped


def read_table(path: Path) -> Table:
    """Return what a metrics.csv holds, damaged lines too; an empty table where there is none."""
    if not path.is_file():
        return Table()
    *lines, rest = path.read_bytes().split(b"\n")
    if not lines:
        return Table(torn=bool(rest))
    columns = _cells(lines[0])
    if STEP not in columns or len(set(columns)) < len(columns):
        return Table(damaged=list(range(1, len(lines) + 1)), torn=bool(rest))
    table = Table(columns, torn=bool(rest))
    for number, line in enumerate(lines[1:], start=2):
        row = dict(zip(columns, cells := _cells(line), strict=False))
        if len(cells) == len(columns) and row[STEP].isdecimal() and all(map(_is_number, cells)):
            table.rows.append((number, row))
        else:
            table.damaged.append(number)
    return table


def _cells(line: bytes) -> list[str]:
    try:
        return next(csv.reader([line.decode().removesuffix("\r")], strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        return []


def _is_number(text: str) -> bool:
    try:
        return not text or bool(text.isascii() and [float(text)])
    except ValueError:
        return False


def write_table(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """Write a metrics.csv anew, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    if columns:
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    write_whole(path, text.getvalue())
