"""The fingerprint as a table that a person reads before agreeing to a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from inflate3d.planning.fingerprint import Fingerprint


def print_fingerprint(found: Fingerprint) -> None:
    """Print what was found, a row a fact."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows(found):
        table.add_row(name, text)
    Console(highlight=False).print(table)


def rows(found: Fingerprint) -> Iterator[tuple[str, str]]:
    """Yield (fact, words)."""
    from inflate3d.data.shards.findings import intensity_words, shown_number

    card = found.card
    splits = ", ".join(f"{count} {split}" for split, count in found.splits.items())
    yield "cases", f"{sum(found.splits.values())}: {splits}; the rest is measured on {len(found.shapes_DHW)} of train"
    channels = ", ".join(card.input.channels)
    yield "channels", channels if channels == card.modality else f"{channels} ({card.modality})"
    yield "size", f"D x H x W, {_spread(found.shapes_DHW)}"
    if card.input.orientation is not None:
        yield "spacing", f"mm, {_spread(found.spacings_mm)}"
    if found.intensity:
        yield "intensities", intensity_words({"intensity": found.intensity})
    for name, target in card.targets.items():
        facts = found.targets.get(name, {})
        tables = {k: v if isinstance(v, dict) else {"": v} for k, v in facts.items()}
        told = [f"{k.replace('_', ' ')}: " + _counts(v, shown_number) for k, v in tables.items()]
        yield name, "; ".join([target.describe(), *told])
    yield "licence", f"{card.licence}; weights may be published: {'yes' if card.weights_may_be_published else 'no'}"


def _counts(table: dict[str, float], shown: object) -> str:
    return ", ".join(f"{name} ({shown(count)})" if name else str(shown(count)) for name, count in table.items())  # type: ignore[operator]


def _spread(values: Sequence[Sequence[float]]) -> str:
    """Return the median of each axis, and the range where there is one."""
    array = np.array(values, float)
    median, low, high = (
        " x ".join(f"{v:.4g}" for v in row) for row in (np.median(array, 0), array.min(0), array.max(0))
    )
    return median if low == high else f"median {median}, from {low} to {high}"
