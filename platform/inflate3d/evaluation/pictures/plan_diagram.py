"""A temporal plan as a diagram: the map's D x H x W at each reduction level, with the kernels and strides between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from inflate3d.evaluation.pictures.figures import save_figure
from inflate3d.models.outline import LevelOutline
from inflate3d.sample import Triple

_STRIDES_D, _KEEPS_D = "#d95f02", "#1b6ca8"
_STEP = 2.7  # from one box's left edge to the next one's
_OBLIQUE = 0.35  # how far the edge along W is drawn aside and up


@dataclass(frozen=True)
class PlanRow:
    """One plan of the picture. title: what it is; levels: as `platform models show` tells them."""

    title: str
    levels: Sequence[LevelOutline]


def plot_plan(rows: Sequence[PlanRow], path: Path, *, title: str, input_size: Triple) -> Path:
    """Draw one row a plan, all at one scale; return the picture's path."""
    return save_figure(draw_plans(rows, title=title, input_size=input_size), path)


def draw_plans(rows: Sequence[PlanRow], *, title: str, input_size: Triple) -> Figure:
    """Return the figure. Boxes run along D from left to right; edges are drawn by their logarithm."""
    columns = 1 + max(len(row.levels) for row in rows)
    figure = Figure(figsize=(1.75 * columns + 0.5, 2.3 * len(rows) + 0.6), layout="constrained", facecolor="white")
    figure.suptitle(f"{title} (D x H x W; orange: strides along D; edges on a log scale)", fontsize=10)
    largest = max(max(input_size), *(max(level.size) for row in rows for level in row.levels))
    for axes, row in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        _draw_row(axes, row, input_size, largest)
        axes.set(xlim=(-0.4, _STEP * columns - 0.2), ylim=(-1.2, 2.0), aspect="equal")
        axes.set_axis_off()
        axes.set_title(row.title, loc="left", fontsize=9)
    return figure


def _draw_row(axes: Axes, row: PlanRow, input_size: Triple, largest: int) -> None:
    _box(axes, 0.0, input_size, largest, "#9a9a9a")
    _label(axes, 0.0, "input", input_size, None)
    for index, level in enumerate(row.levels, start=1):
        x = index * _STEP
        colour = _STRIDES_D if level.stride[0] > 1 else _KEEPS_D
        _box(axes, x, level.size, largest, colour)
        _label(axes, x, f"/{2**level.level}", level.size, level.channels)
        axes.annotate(
            "", xy=(x - 0.1, 0.3), xytext=(x - 0.75, 0.3), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.5}
        )
        kernel = f"kernel {_times(level.kernel)}" if level.kernel else "no kernel"
        text = f"{kernel}\nstride {_times(level.stride)}"
        axes.text(x - 0.5, -0.68, text, ha="center", va="top", fontsize=7.5, color=colour)


def _box(axes: Axes, x: float, size: Triple, largest: int, colour: str) -> None:
    """A cuboid whose width is D, whose height is H and whose oblique edge is W."""
    depth, height, width = (_edge(n, largest) for n in size)
    aside, up = _OBLIQUE * width, _OBLIQUE * width
    front = [(x, 0), (x + depth, 0), (x + depth, height), (x, height)]
    top = [(x, height), (x + depth, height), (x + depth + aside, height + up), (x + aside, height + up)]
    side = [(x + depth, 0), (x + depth, height), (x + depth + aside, height + up), (x + depth + aside, up)]
    for corners, alpha in ((front, 0.75), (top, 0.45), (side, 0.6)):
        axes.add_patch(Polygon(corners, closed=True, facecolor=colour, alpha=alpha, edgecolor="white", linewidth=1))


def _label(axes: Axes, x: float, name: str, size: Triple, channels: int | None) -> None:
    text = f"{name}  {_times(size)}" + (f"\n{channels} channels" if channels else "")
    axes.text(x, -0.15, text, ha="left", va="top", fontsize=7.5)


def _edge(n: int, largest: int) -> float:
    """0.08 for one voxel, 1.35 for the largest edge."""
    return 0.08 + 1.27 * math.log2(n) / max(math.log2(largest), 1)


def _times(values: Sequence[int]) -> str:
    return " x ".join(map(str, values))
