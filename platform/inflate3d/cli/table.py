"""Plain columns for lists, readable in a terminal, a pipe and a log file."""

from __future__ import annotations

import shutil
from collections.abc import Sequence


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows in aligned columns; the last column is cut to the terminal's width if that is known."""
    cells = [[str(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header) - 1)]
    room = shutil.get_terminal_size((160, 24)).columns - sum(widths) - 2 * len(widths)
    for row in [list(header), *cells]:
        *first, last = row
        left = "".join(f"{value:<{width}}  " for value, width in zip(first, widths, strict=True))
        print((left + _cut(last, max(room, 20))).rstrip())


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
