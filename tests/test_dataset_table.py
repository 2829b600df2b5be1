"""docs/datasets.md says of each dataset what its card says, and no more."""

from __future__ import annotations

import re
from pathlib import Path

from inflate3d.contracts import DatasetCard
from inflate3d.discover import plug_ins

PAGE = Path(__file__).parents[1] / "docs" / "datasets.md"


def row(name: str, card: DatasetCard) -> str:
    commercial = {True: "yes", False: "no", None: "not stated"}[card.commercial_use]
    weights = "yes" if card.weights_may_be_published else "no"
    return f"| `{name}` | {card.title} | {card.media} | {card.licence} | {commercial} | {weights} |"


def test_the_table_of_datasets_is_that_of_the_cards() -> None:
    built_in = {n: p for n, p in plug_ins("datasets").items() if p.module.startswith("inflate3d.datasets")}
    expected = [row(name, plug_in.load().base_card) for name, plug_in in built_in.items()]
    assert re.findall(r"^\| `.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE) == expected
