"""Tables that people write in editors and spreadsheets: CSV with a header, row by row with its line."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from inflate3d.data.raw.text import read_text
from inflate3d.errors import InputError, unknown_name

_DELIMITERS = (",", ";", "\t")
Cells = tuple[int, list[str]]


class Row(dict[str, str]):
    """The values of one row by column, stripped. line: where it begins in its file, from 1."""

    def __init__(self, line: int, values: dict[str, str]) -> None:
        super().__init__(values)
        self.line = line


def read_table(
    path: Path,
    *,
    required: Sequence[str],
    allowed: Sequence[str] | None = None,
    unnamed: Sequence[str] = (),
    encoding: str | None = None,
) -> list[Row]:
    """Return the rows of a CSV, values stripped; blank lines are skipped.

    Commas, semicolons or tabs separate, by the first line (Excel's `sep=;` counts); quotes as in RFC 4180. Encodings:
    see `read_text`. allowed: the columns that may be there; None: any. unnamed: the columns of a file without a header,
    which is one whose first line holds none of the names in `required`; empty: a header is needed. InputError names
    the line of a row that is too short or too long or wrongly quoted, and the column that is missing, unknown or
    doubled; a table without rows is refused.
    """
    records = _read_cells(path, required or unnamed, read_text(path, encoding=encoding))
    header, rows = (records[0][1], records[1:]) if records else ([], [])
    if unnamed and not set(required or unnamed) & set(header):
        header, rows = list(unnamed), records
    header = _checked_header(path, header, required, allowed, rows)
    if not rows:
        raise InputError(f"{path} lists no cases; write one row per case below the header {header}")
    return [Row(line, dict(zip(header, _fitted(path, line, cells, header), strict=True))) for line, cells in rows]


def _read_cells(path: Path, names: Sequence[str], text: str) -> list[Cells]:
    """Return (line, stripped cells) of each row that is not blank, separated as the first line is."""
    first, _, rest = text.partition("\n")
    offset = 0
    if first.strip().lower().startswith("sep=") and len(first.strip()) <= 5:
        delimiter, text, offset = first.strip("\r\n ")[4:] or "\t", rest, 1
    else:
        delimiter = _delimiter_of(text, names)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records: list[Cells] = []
    line = 0
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                records.append((line + 1 + offset, cells))
            line = reader.line_num
    except csv.Error as fault:
        raise InputError(
            f"{path} line {line + 1 + offset}: {fault}; quote a value as a whole, and double the quotes inside it"
        ) from fault
    return records


def _delimiter_of(text: str, names: Sequence[str]) -> str:
    """Return the delimiter under which the first line holds most of the names; of equals the one with more cells."""
    first = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")

    def fit(delimiter: str) -> tuple[int, int]:
        cells = [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter), [])]
        return len(set(names) & set(cells)), len(cells)

    return max(_DELIMITERS, key=fit)


def _checked_header(
    path: Path, header: list[str], required: Sequence[str], allowed: Sequence[str] | None, rows: Sequence[Cells]
) -> list[str]:
    """Return the columns, without nameless ones at the end that are empty in every row."""
    while header and not header[-1] and not any(len(c) >= len(header) and c[len(header) - 1] for _, c in rows):
        header = header[:-1]
    if absent := [c for c in required if c not in header]:
        raise InputError(
            f"{path}: no column {absent[0]!r}; its first line is {header}, which must name the columns; "
            f"needed: {list(required)}"
        )
    if doubled := [name for name, count in Counter(header).items() if count > 1]:
        raise InputError(f"{path}: the column {doubled[0]!r} is there twice; leave one out")
    for column in header if allowed is not None else []:
        if column not in (allowed or ()):
            raise unknown_name("column", column, allowed or (), where=str(path))
    return header


def _fitted(path: Path, line: int, cells: list[str], header: Sequence[str]) -> list[str]:
    """Return a row's cells, one a column; empty ones beyond the last column are dropped."""
    while len(cells) > len(header) and not cells[-1]:
        cells = cells[:-1]
    if len(cells) != len(header):
        raise InputError(
            f"{path} line {line}: {len(cells)} values for {len(header)} columns; quote values that hold a separator"
        )
    return cells
