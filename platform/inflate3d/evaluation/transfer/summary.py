"""The table of finished cells: mean, spread and interval of each arm, and the paired gain over the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inflate3d.evaluation.transfer.cells import Cell
from inflate3d.evaluation.transfer.intervals import Bootstrap, Score, score_of

Rows = list[dict[str, Any]]


def summarise(found: Mapping[Cell, dict[str, Any]], metric: str) -> Rows:
    """Return a row for each arm, mode and share of labels with finished cells.

    value: mean over seeds, with low and high; std over seeds (0 for one seed); against: the paired difference to every
    other arm of the same mode and share, over the seeds of both. beside: the mean under each kind of BatchNorm
    statistics. metrics: the mean and interval of every other metric.
    """
    rows: Rows = []
    for (mode, fraction), arms in _tables(found).items():
        for arm, cells in arms.items():
            own = [found[c] for c in cells]
            each = [_number(r["test"]["total"][metric]) for r in own]
            rows.append(
                {
                    "mode": mode,
                    "fraction": fraction,
                    "arm": arm,
                    "metric": metric,
                    "seeds": [c.seed for c in cells],
                    "labels": own[0]["labels"],
                    "samples": len(own[0]["test"]["keys"]),
                    "per_seed": each,
                    **_interval(own, metric),
                    "std": _std(each),
                    "chosen": [r["chosen"] for r in own],
                    "beside": _beside(own, metric),
                    "against": _against(found, arms, arm, metric),
                    "metrics": {m: _interval(own, m) for m in own[0]["test"]["total"] if m != metric},
                    "seconds": round(float(np.median([r["seconds"] for r in own])), 1),
                }
            )
    return rows


def published_results(rows: Rows, dataset: str) -> list[dict[str, Any]]:
    """Return the rows that `platform publish --results` takes into a model card."""
    return [
        {
            "start": row["arm"],
            "metric": f"{dataset}, {row['mode']}, {row['fraction']:.0%} of labels: {row['metric']}",
            "mean": row["value"],
            "low": row["low"],
            "high": row["high"],
            "std": row["std"],
            "runs": len(row["seeds"]),
        }
        for row in rows
    ]


def _tables(found: Mapping[Cell, Any]) -> dict[tuple[str, float], dict[str, list[Cell]]]:
    tables: dict[tuple[str, float], dict[str, list[Cell]]] = {}
    for cell in found:
        tables.setdefault((cell.mode, cell.fraction), {}).setdefault(cell.arm, []).append(cell)
    return tables


def _against(
    found: Mapping[Cell, dict[str, Any]], arms: Mapping[str, list[Cell]], arm: str, metric: str
) -> dict[str, dict[str, float]]:
    differences = {}
    for other in arms:
        shared = [c for c in arms[arm] if any(o.seed == c.seed for o in arms[other])] if other != arm else []
        if not shared:
            continue
        pair = [_score([found[_as(c, name)] for c in shared], metric) for name in (arm, other)]
        if pair[0] is not None and pair[1] is not None:
            draws = Bootstrap(len(shared), len(found[shared[0]]["test"]["keys"]))
            differences[other] = draws.difference(pair[0], pair[1]).to_dict()
    return differences


def _as(cell: Cell, arm: str) -> Cell:
    return Cell(arm, cell.mode, cell.fraction, cell.seed)


def _interval(records: Sequence[dict[str, Any]], metric: str) -> dict[str, float | None]:
    if (score := _score(records, metric)) is not None:
        draws = Bootstrap(len(records), len(records[0]["test"]["keys"]))
        return draws.interval(score).to_dict()  # type: ignore[return-value]
    each = [_number(r["test"]["total"][metric]) for r in records]
    return {"value": float(np.mean(each)), "low": None, "high": None}


def _score(records: Sequence[dict[str, Any]], metric: str) -> Score | None:
    return score_of(metric, [r["test"] for r in records])


def _beside(records: Sequence[dict[str, Any]], metric: str) -> dict[str, float]:
    kinds = records[0]["beside"]
    return {kind: float(np.mean([_number(r["beside"][kind][metric]) for r in records])) for kind in kinds}


def _std(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
