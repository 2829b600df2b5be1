"""Lists of videos as people write them: path and label a line, Kinetics' CSV, or a table with a header."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import NamedTuple

from inflate3d.contracts import Split
from inflate3d.data.raw.files import VIDEO_SUFFIXES
from inflate3d.data.raw.tables import Row, read_table
from inflate3d.data.raw.text import read_lines
from inflate3d.errors import InputError

KINETICS = ("label", "youtube_id", "time_start", "time_end")
_DELIMITERS = ",;\t"


class Listed(NamedTuple):
    """One clip. path: of the file; of Kinetics its name without suffix, ID_000010_000020. at: file and line."""

    split: Split
    path: str
    label: str
    group: str | None
    at: str
    is_kinetics: bool = False


def read_video_list(file: Path, split: Split, *, encoding: str | None = None) -> list[Listed]:
    """Return the clips of a list in order, in one of three forms, recognised by the first line.

    1. a header with youtube_id, time_start, time_end and label (Kinetics)  2. a header with path and label, and
    perhaps group  3. no header: "path label", with blanks, a comma, a semicolon or a tab between, and a whole number
    as label. Encodings and quotes: see `read_table`. InputError names the line of what is no clip.
    """
    lines = read_lines(file, encoding=encoding)
    if not lines:
        raise InputError(f"{file}: is empty; write a line for each clip: path label")
    first = next((text for _, text in lines if not text.lower().startswith("sep=")), "")
    columns = {cell.strip(" \"'") for cell in re.split(f"[{_DELIMITERS}]", first)}
    if {"youtube_id", "time_start"} <= columns:
        return [_kinetics(file, split, row) for row in read_table(file, required=KINETICS, encoding=encoding)]
    if {"path", "label"} <= columns:
        allowed = ("path", "label", "group")
        rows = read_table(file, required=allowed[:2], allowed=allowed, encoding=encoding)
        return [_row(file, split, row) for row in rows]
    return [_plain(f"{file} line {number}", split, text) for number, text in lines]


def _row(file: Path, split: Split, row: Row) -> Listed:
    for name in ("path", "label"):
        if not row[name]:
            raise InputError(f"{file} line {row.line}: no {name}; fill the cell, or remove the line")
    return Listed(split, row["path"], row["label"], row.get("group") or None, f"{file} line {row.line}")


def _kinetics(file: Path, split: Split, row: Row) -> Listed:
    seconds = []
    for name in KINETICS:
        if not row[name]:
            raise InputError(f"{file} line {row.line}: no {name}; fill the cell, or remove the line")
    for name in ("time_start", "time_end"):
        try:
            value = float(row[name])
        except ValueError:
            value = math.nan
        if not 0 <= value < 1_000_000:
            raise InputError(f"{file} line {row.line}: {name} is {row[name]!r}; expected seconds, such as 10")
        seconds.append(f"{int(value):06d}")
    name = "_".join([row["youtube_id"], *seconds])
    return Listed(split, name, row["label"], row["youtube_id"], f"{file} line {row.line}", is_kinetics=True)


def _plain(at: str, split: Split, text: str) -> Listed:
    """Read one line without a header; a path may hold blanks, and commas or quotes where it is quoted."""
    for delimiter in _DELIMITERS:
        cells = next(csv.reader([text], delimiter=delimiter, skipinitialspace=True), [])
        if len(cells) == 2 and re.fullmatch("[0-9]+", cells[1].strip()):
            return Listed(split, _checked(cells[0].strip(), at, text), cells[1].strip(), None, at)
    if (match := re.fullmatch(r"(.+?)[ \t,;]+([0-9]+)", text)) is None:
        raise InputError(
            f"{at}: {text[:80]!r}; expected 'path label' with a whole number as label, or a header with path and label "
            "in line 1"
        )
    quoted = re.fullmatch(r'"(.*)"', match[1])
    path = quoted[1].replace('""', '"') if quoted else match[1]
    return Listed(split, _checked(path, at, text), match[2], None, at)


def _checked(path: str, at: str, text: str) -> str:
    """Return the path; InputError for one that is no video's, such as where a number of frames is behind it."""
    if path.lower().endswith(VIDEO_SUFFIXES):
        return path
    raise InputError(
        f"{at}: {text[:80]!r} gives the path {path[:80]!r}, which ends in none of {', '.join(VIDEO_SUFFIXES[:5])}, "
        "...; expected one path and one label"
    )
