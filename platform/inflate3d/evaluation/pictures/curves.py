"""Curves of a run, from its metrics.csv: losses on the left, validation metrics and frozen probes on the right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inflate3d.errors import InputError
from inflate3d.training.run.folder import METRICS
from inflate3d.training.run.metrics_csv import read_metrics

Row = dict[str, float]


def plot_curves(run_folder: str | Path, path: str | Path | None = None) -> Path:
    """Draw a run's curves; return the picture's path (default: curves.png in the run folder)."""
    path = Path(path or Path(run_folder) / "curves.png")
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    draw_curves(figure, run_rows(run_folder))
    figure.savefig(path, dpi=110)
    return path


def run_rows(run_folder: str | Path) -> list[Row]:
    """Return the rows of a run's metrics.csv; InputError if there are none."""
    rows = read_metrics(Path(run_folder) / METRICS)
    if not rows:
        raise InputError(f"{run_folder}: {METRICS} is missing or empty; nothing has been logged in this run folder")
    return rows


def draw_curves(figure: Any, rows: list[Row]) -> None:
    """Draw losses, validation metrics and frozen probes into a figure or subfigure."""
    left, right = figure.subplots(1, 2)
    keys = {key for row in rows for key in row if key.startswith("train/") and key.endswith("/loss")}
    losses = sorted(keys - {"train/loss"}) if len(keys) > 1 else sorted(keys)  # the sum of all says less than its parts
    for key in losses:
        _draw(left, rows, key, label=key.removeprefix("train/").removesuffix("/loss"))
    left.set(title="training loss", xlabel="optimiser step")
    left.set_ylim(bottom=0)
    metrics = sorted({key for row in rows for key in row if key.startswith("val/")} - {"val/score"})
    for key in main_metrics(metrics):
        _draw(right, rows, key, label=key.removeprefix("val/"), marker="o")
    _draw(right, rows, "val/score", label="score", marker="o", color="black", linewidth=2)
    probes = sorted({k for row in rows for k in row if k.startswith("probe/") and not k.endswith("/std")})
    for key in probes:
        _draw(right, rows, key, label=f"probe: {key.removeprefix('probe/')}", marker="s", linestyle="--")
    right.set(title="validation and probes" if probes else "validation", xlabel="optimiser step", ylim=(0, 1.02))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=6, framealpha=0.6, ncols=-(-len(axes.lines) // 14))


def _draw(axes: Axes, rows: list[Row], key: str, **style: Any) -> None:
    points = [(row["step"], row[key]) for row in rows if key in row]
    if points:
        axes.plot(*zip(*points, strict=True), markersize=3, **{"linewidth": 1.2, **style})


def main_metrics(metrics: list[str]) -> list[str]:
    """Return metrics, but of many leave out what would crowd a plot: a mean's parts (dice_<class>), and losses."""
    named = [(metric, metric.rpartition("/")[2]) for metric in metrics]
    return metrics if len(metrics) <= 10 else [m for m, name in named if "_" not in name and name != "loss"]
