"""metrics.csv as a logger: a row is appended each time metrics are logged; a run that goes on keeps its past."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from inflate3d.files import flush, told_where
from inflate3d.training.run.metrics_csv import STEP, read_table, write_table


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
            self._columns = read_table(self.path).columns
        new = [key for key in row if key not in self._columns]
        if new:
            rows = [known for _, known in read_table(self.path).rows]
            self._columns = [*self._columns, *new]
            write_table(self.path, self._columns, [*rows, row])
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
