"""dice.csv: the scores of single cases as `platform predict --labels` leaves them, read again without torch."""

from __future__ import annotations

import csv
from pathlib import Path

from inflate3d.errors import InputError

SCORES = "dice.csv"


def read_scores(path: Path) -> tuple[list[str], dict[str, list[float | None]]]:
    """Return (columns, the scores of each case) of what `CaseScores` wrote, without its mean; None where none was.

    InputError names a line that is damaged.
    """
    found: dict[str, list[float | None]] = {}
    columns: list[str] = []
    try:
        (_, *columns), *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
        for key, *cells in rows:
            found[key] = [float(cell) if cell else None for _, cell in zip(columns, cells, strict=True)]
    except ValueError as fault:
        line = f"line {len(found) + 2}: " if columns else ""
        raise InputError(f"{path}: damaged: {line}{fault}. Predict again with --labels") from fault
    found.pop("mean", None)
    return columns, found
