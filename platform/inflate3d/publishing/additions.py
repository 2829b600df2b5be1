"""What a person adds to a model card: results against other starts, notes, and whole transfers with their pages."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inflate3d.errors import InputError
from inflate3d.models.publication.layout import is_file_name

_PAGE = re.compile(r"transfer-[\w.-]+\.html", re.ASCII)
MOST_NOTES = 4096
RESULTS, REPORT = "results.json", "report.html"
_REQUIRED, _OPTIONAL = ("start", "metric", "mean", "std", "runs"), ("low", "high")


@dataclass(frozen=True)
class Additions:
    """results: rows of {start, metric, mean, std, runs}, with low and high if there is an interval; None: not given.

    notes: Markdown. reports: pages by their file name in the publication.
    """

    results: list[dict[str, Any]] | None = None
    notes: str | None = None
    reports: dict[str, bytes] = field(default_factory=dict)

    def to_training(self, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return these entries of `training` in a publication's config; those not given stay unchanged."""
        known = known or {}
        return {
            "results": known.get("results", []) if self.results is None else self.results,
            "notes": known.get("notes") if self.notes is None else self.notes,
            "reports": sorted(self.reports) if self.results is not None else known.get("reports", []),
        }


def is_page(name: Any) -> bool:
    """Whether a name is allowed for a transfer's page in a publication; a stranger's config.json may hold others."""
    return isinstance(name, str) and _PAGE.fullmatch(name) is not None and is_file_name(name)


def read_additions(
    *, results: str | Path | None = None, notes: str | Path | None = None, transfers: Sequence[str | Path] = ()
) -> Additions:
    """Read the additions to the card. InputError for a file that is missing or holds something else.

    results: a JSON list of rows. notes: Markdown. transfers: output folders of `platform transfer`, whose rows follow
    those of `results` and whose report becomes transfer-<folder>.html.
    """
    rows = None if results is None else _rows(results, "--results")
    reports: dict[str, bytes] = {}
    for given in transfers:
        folder = Path(given).resolve()
        name = f"transfer-{folder.name}.html"
        if not (folder / RESULTS).is_file() or not (folder / REPORT).is_file():
            raise InputError(f"--transfer {given}: has no {RESULTS} and {REPORT}; give the --output of a transfer")
        if name in reports or not is_page(name):
            raise InputError(
                f"--transfer {given}: the page would be {name!r}, which is taken or not allowed; rename the folder"
            )
        rows = [*(rows or []), *_rows(folder / RESULTS, "--transfer")]
        reports[name] = (folder / REPORT).read_bytes()
    return Additions(rows, None if notes is None else _text(notes), reports)


def _rows(file: str | Path, option: str) -> list[dict[str, Any]]:
    try:
        rows = json.loads(Path(file).read_text(encoding="utf-8"))
        return [{k: row[k] for k in _REQUIRED} | {k: row[k] for k in _OPTIONAL if k in row} for row in rows]
    except (OSError, ValueError, TypeError, LookupError) as fault:
        raise InputError(
            f"{option} {file}: {fault!r}; expected a JSON list of {{start, metric, mean, std, runs}}"
        ) from fault


def _text(file: str | Path) -> str:
    try:
        text = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as fault:
        raise InputError(f"--notes {file}: cannot be read ({fault}); expected Markdown") from fault
    if len(text) > MOST_NOTES:
        raise InputError(f"--notes {file}: {len(text)} characters; a card takes at most {MOST_NOTES}")
    return text
