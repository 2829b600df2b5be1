"""Plots of a transfer: for each mode, every arm's mean, interval and seeds, one panel a share of the labels."""

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
    """Return a PNG of one mode's rows; arms in the order given, from the top down."""
    shares = sorted({row["fraction"] for row in rows if row["mode"] == mode})
    height = 0.9 + 0.42 * len(arms)
    figure = Figure(figsize=(min(3.2 + 2.9 * len(shares), 12), height), layout="constrained")
    panels = figure.subplots(1, len(shares), squeeze=False, sharex=True, sharey=True)[0]
    for axes, share in zip(panels, shares, strict=True):
        here = [row for row in rows if row["mode"] == mode and row["fraction"] == share]
        for row in here:
            _draw(axes, row, len(arms) - 1 - list(arms).index(row["arm"]), _COLOURS(list(arms).index(row["arm"]) % 10))
        axes.set_title(f"{share:.0%} of labels ({here[0]['labels']} samples)", fontsize=9)
        axes.set_yticks(range(len(arms)), list(reversed(arms)), fontsize=9)
        axes.set_ylim(-0.6, len(arms) - 0.4)
        axes.set_xlabel(here[0]["metric"], fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    return stream.getvalue()


def _draw(axes: Axes, row: Row, height: int, colour: Any) -> None:
    if row["low"] is not None:
        axes.plot([row["low"], row["high"]], [height, height], color=colour, linewidth=2, solid_capstyle="round")
    axes.plot(row["per_seed"], [height - 0.2] * len(row["per_seed"]), "|", color=colour, markersize=7, alpha=0.6)
    axes.plot([row["value"]], [height], "o", color=colour, markersize=6)
    axes.annotate(
        f"{row['value']:.3f}", (row["value"], height), (0, 5), textcoords="offset points", ha="center", size=7
    )
