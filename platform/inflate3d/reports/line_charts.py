"""Curves of a run as small line charts, one a quantity, that follow from the rows of its metrics.csv."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from inflate3d.evaluation.pictures.curves import Row, main_metrics

MOST_POINTS = 400
"""Of one chart; of a longer curve every second, third, ... value is drawn, and the last."""
_LOSSES, _VALIDATION = "training losses", "validation"


def run_charts(rows: Sequence[Row]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return (heading, charts): validation, probes, training losses, the learning rate and what else was logged.

    A chart has name, points (x and y from 0 to 100, y downwards, for an SVG polyline), low and high (what the ends of
    y stand for), last, first_step, last_step, and whether its points are far enough apart to be seen one by one.
    """
    keys = sorted({key for row in rows for key in row} - {"step"})
    validation = [key for key in keys if key.startswith("val/")]
    groups = {
        _VALIDATION: [k for k in validation if k == "val/score"]
        + main_metrics([k for k in validation if k != "val/score"]),
        "frozen probes": [k for k in keys if k.startswith("probe/") and not k.endswith("/std")],
        _LOSSES: [k for k in keys if k.startswith("train/") and k.endswith("/loss")],
        "learning rate and gradients": [k for k in keys if k == "lr" or k.startswith("gradient/")],
    }
    found = [(heading, [c for k in own if (c := _chart(rows, k))]) for heading, own in groups.items()]
    return [(heading, charts) for heading, charts in found if charts]


def _chart(rows: Sequence[Row], key: str) -> dict[str, Any] | None:
    points = [(row["step"], row[key]) for row in rows if math.isfinite(row.get(key, math.nan))]
    if not points:
        return None
    every = -(-len(points) // MOST_POINTS)
    shown = [*points[:-1:every], points[-1]]
    steps, values = zip(*points, strict=True)
    low, high = _ends(key, min(values), max(values))
    wide, tall = max(steps[-1] - steps[0], 1), (high - low) or 1.0
    places = [(100 * (s - steps[0]) / wide, 100 * (high - v) / tall) for s, v in shown]
    return {
        "name": key.partition("/")[2].removesuffix("/loss") or key if "/" in key else key,
        "points": " ".join(f"{x:.2f},{y:.2f}" for x, y in places),
        "dots": [(round(x, 2), round(y, 2)) for x, y in places] if len(places) <= 40 else [],
        "low": low,
        "high": high,
        "last": values[-1],
        "first_step": int(steps[0]),
        "last_step": int(steps[-1]),
        "every": every,
    }


def _ends(key: str, low: float, high: float) -> tuple[float, float]:
    """Return what the lower and upper edge stand for: 0 below what is not negative; 0 and 1 for shares of 1."""
    is_share = key.startswith(("val/", "probe/")) and 0 <= low <= high <= 1 and not key.endswith("/loss")
    return min(low, 0.0), 1.0 if is_share else high if high > 0 else 0.0
