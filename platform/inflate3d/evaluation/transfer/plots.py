"""Plots of a transfer, one panel per share of labels: mean, interval and seeds of every arm; gain by architecture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = Mapping[str, Any]
_COLOURS = colormaps["tab10"]


def plot_mode(rows: Sequence[Row], *, mode: str, arms: Sequence[str]) -> bytes:
    """Return a PNG of one mode's rows; arms in the given order, from the top down."""
    shares = by_share([row for row in rows if row["mode"] == mode])
    figure, panels = _panels(len(shares), arms)
    for axes, here in zip(panels, shares, strict=True):
        for row in here:
            _draw(axes, row, len(arms) - 1 - list(arms).index(row["arm"]), _COLOURS(list(arms).index(row["arm"]) % 10))
        _label(axes, here[0], here[0]["metric"])
    return _png(figure)


def plot_gains(gains: Sequence[Row]) -> bytes:
    """Return a PNG of what inflated weights gain over scratch; architectures from the top down.

    A dot is hollow if the interval contains 0.
    """
    names = list(dict.fromkeys(gain["name"] for gain in gains))
    shares = by_share(gains)
    figure, panels = _panels(len(shares), names)
    for axes, here in zip(panels, shares, strict=True):
        axes.axvline(0, color="0.4", linewidth=1)
        for each in here:
            height, gain = len(names) - 1 - names.index(each["name"]), each["gain"]
            is_told_apart = gain["low"] > 0 or gain["high"] < 0
            axes.plot([gain["low"], gain["high"]], [height, height], color=_COLOURS(0), linewidth=2)
            axes.plot(
                [gain["value"]], [height], "o", color=_COLOURS(0), markersize=6, mfc=None if is_told_apart else "w"
            )
            _write_above(axes, f"{gain['value']:+.3f}", gain["value"], height)
        _label(axes, here[0]["scratch"], f"gain of inflated over scratch, {here[0]['scratch']['metric']}")
    return _png(figure)


def by_share(rows: Sequence[Row]) -> list[list[Row]]:
    """Return rows in groups of one share of the labels, the smallest share first."""
    return [[row for row in rows if row["fraction"] == share] for share in sorted({row["fraction"] for row in rows})]


def _panels(count: int, names: Sequence[str]) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure with a panel for each share of labels and a line for each name, from the top down."""
    figure = Figure(figsize=(min(3.2 + 2.9 * count, 12), 0.9 + 0.42 * len(names)), layout="constrained")
    panels = figure.subplots(1, count, squeeze=False, sharex=True, sharey=True)[0]
    for axes in panels:
        axes.set_yticks(range(len(names)), list(reversed(names)), fontsize=9)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, panels


def _label(axes: Axes, row: Row, metric: str) -> None:
    axes.set_title(f"{row['fraction']:.0%} of labels ({row['labels']} samples)", fontsize=9)
    axes.set_xlabel(metric, fontsize=9)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    return stream.getvalue()


def _draw(axes: Axes, row: Row, height: int, colour: Any) -> None:
    if row["low"] is not None:
        axes.plot([row["low"], row["high"]], [height, height], color=colour, linewidth=2, solid_capstyle="round")
    axes.plot(row["per_seed"], [height - 0.2] * len(row["per_seed"]), "|", color=colour, markersize=7, alpha=0.6)
    axes.plot([row["value"]], [height], "o", color=colour, markersize=6)
    _write_above(axes, f"{row['value']:.3f}", row["value"], height)


def _write_above(axes: Axes, text: str, x: float, height: int) -> None:
    axes.annotate(text, (x, height), (0, 5), textcoords="offset points", ha="center", size=7)
