"""metrics.csv: one row each time metrics are logged, appended, so that a run that goes on keeps its past."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

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
            self._columns = _read(self.path)[0]
        new = [key for key in row if key not in self._columns]
        if new:
            _, rows = _read(self.path)
            self._columns = [*self._columns, *new]
            _write(self.path, self._columns, [*rows, row])
        else:
            with self.path.open("a", newline="", encoding="utf-8") as stream:
                csv.DictWriter(stream, self._columns, restval="").writerow(row)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's config.yaml is the truth."""


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """Return the rows of a metrics.csv; empty cells are left out."""
    return [{k: float(v) for k, v in row.items() if v not in ("", None)} for row in _read(Path(path))[1]]


def drop_rows_after(path: str | Path, step: int) -> int:
    """Remove the rows of steps past `step` (a future that is run again) and a torn last row; return how many."""
    columns, rows = _read(Path(path))
    kept = [row for row in rows if _is_whole(row, columns) and int(row[STEP]) <= step]
    if len(kept) < len(rows):
        _write(Path(path), columns, kept)
    return len(rows) - len(kept)


def _is_whole(row: dict[str, str], columns: list[str]) -> bool:
    return all(row.get(c) is not None for c in columns) and row[STEP].isdigit()


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    if not path.is_file():
        return [], []
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
        return list(reader.fieldnames or []), rows


def _write(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)
