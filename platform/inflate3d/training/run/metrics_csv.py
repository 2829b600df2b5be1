"""metrics.csv: one row each time metrics are logged, appended, so that a run that goes on keeps its past."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from inflate3d.errors import InputError
from inflate3d.files import flush, set_aside, told_where, write_whole

log = logging.getLogger(__name__)
STEP = "step"


class MetricsCSV(Logger):
    """Lightning logger that appends rows to one file. `step` counts the optimiser steps done.

    `global_step` is asked at each row: Lightning's own logging step is one less, and can fall behind on a resume.
    A key never seen before gets a new column; the file is then written anew, whole.
    """

    def __init__(self, path: str | Path, *, global_step: Callable[[], int]) -> None:
        super().__init__()
        self.path = Path(path)
        self.global_step = global_step
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """Lightning asks for a name."""
        return "metrics"

    @property
    def version(self) -> str:
        """Lightning asks for a version; there is none, the file goes on."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row."""
        row: dict[str, Any] = {
            STEP: self.global_step(),
            **{k: v for k, v in metrics.items() if k not in (STEP, "epoch")},
        }
        if self._columns is None:
            self._columns = _read(self.path).columns
        new = [key for key in row if key not in self._columns]
        if new:
            rows = [known for _, known in _read(self.path).rows]
            self._columns = [*self._columns, *new]
            _write(self.path, self._columns, [*rows, row])
        else:
            with told_where(self.path), self.path.open("a", newline="", encoding="utf-8") as stream:
                csv.DictWriter(stream, self._columns, restval="").writerow(row)

    @rank_zero_only
    def save(self) -> None:
        """Wait until the rows are on the disk: those up to a checkpoint must be there when it is."""
        if self.path.is_file():
            flush(self.path)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's config.yaml is the truth."""


@dataclass(frozen=True)
class _Table:
    """rows: the whole ones, each with its line. damaged: the lines that were ended and are no rows; 1 is the columns'.

    A line without its end is neither: it is being written, or its writer was killed.
    """

    columns: list[str] = field(default_factory=list)
    rows: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    torn: bool = False


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """Return the rows of a metrics.csv; empty cells are left out. InputError names a damaged line."""
    table = _read(Path(path))
    if table.damaged:
        raise InputError(f"{path}: line {table.damaged[0]} is damaged; remove it, or put a copy of the file back")
    return [{k: float(v) for k, v in row.items() if v != ""} for _, row in table.rows]


def drop_rows_after(path: str | Path, step: int) -> int:
    """Remove the rows of steps past `step` (a future that is run again) and a torn last line; return how many.

    Damaged lines among the others cannot be made again: this is logged, and the file as it was gets another name.
    """
    path = Path(path)
    table = _read(path)
    kept = [row for _, row in table.rows if int(row[STEP]) <= step]
    future = next((line for line, row in table.rows if int(row[STEP]) > step), math.inf)
    if lost := [line for line in table.damaged if line < future]:
        told = f"{path}: damaged at line {lost[0]}, {len(lost)} in all"
        log.warning("%s. The run goes on with the others; the file is kept as %s", told, set_aside(path).name)
    dropped = len(table.rows) - len(kept) + len(table.damaged) + table.torn
    if dropped:
        _write(path, table.columns, kept)
    return dropped


def _read(path: Path) -> _Table:
    if not path.is_file():
        return _Table()
    *lines, rest = path.read_bytes().split(b"\n")
    if not lines:
        return _Table(torn=bool(rest))
    columns = _cells(lines[0])
    if STEP not in columns or len(set(columns)) < len(columns):
        return _Table(damaged=list(range(1, len(lines) + 1)), torn=bool(rest))
    table = _Table(columns, torn=bool(rest))
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


def _write(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    if columns:
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    write_whole(path, text.getvalue())
