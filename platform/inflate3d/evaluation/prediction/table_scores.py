"""How good predicted classes, labels or numbers are against a CSV of true ones: scores with their intervals."""

# N cases, K classes or labels

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from inflate3d.contracts import AbstractTarget
from inflate3d.data.raw.tables import read_table
from inflate3d.errors import InputError, close_names
from inflate3d.evaluation.prediction.case_scores import write_csv
from inflate3d.evaluation.transfer.intervals import AreaScore, Bootstrap, MeanOfScores, MeanScore, Score

SCORES = "scores.csv"
_COLUMNS = ("key", "label")


class TableScores:
    """Scores of answers against the column `label` of a CSV, whose column `key` names the cases as predictions do.

    Classes: accuracy, and the area under the ROC curve (one class against the rest, their mean). Labels that may hold
    together, "a; b" in a cell and ";" for none: the area of each, and their mean. Numbers: mean absolute error. An
    empty cell is not known. Intervals: 95 % of 2000 bootstrap draws of the cases.
    """

    def __init__(self, labels: Path, keys: Sequence[str], target: AbstractTarget, table: Path) -> None:
        """InputError names the line of a label that is none, and the cases without a row."""
        if not labels.is_file():
            raise InputError(f"--labels: no file {str(labels)!r}; a CSV with the columns key and label is needed")
        self.target, self.table = target, table
        self.truth = _truth(labels, keys, target)
        self.answers: dict[str, np.ndarray] = {}

    def add(self, key: str, answer: Tensor) -> None:
        """Note the answer of one case: (K,) probabilities, or () a number."""
        self.answers[key] = answer.double().numpy()

    def scores(self) -> dict[str, tuple[int, Score]]:
        """Return each score by name, with how many cases it rests on."""
        known = [key for key in self.answers if not bool(np.isnan(self.truth[key]).all())]
        if not known:
            return {}
        answers, truth = (np.stack([of[key] for key in known]) for of in (self.answers, self.truth))
        if self.target.exclusive:
            return _class_scores(answers, truth.astype(int))
        if answers.ndim == 2:
            return _label_scores(answers, truth, self.target.names)
        return {"mean_absolute_error": (len(known), MeanScore(np.abs(answers - truth)[None]))}

    def close(self) -> str:
        """Write the scores whole: score, value, low, high, cases; return them in a line."""
        rows, told = [["score", "value", "low", "high", "cases"]], []
        for name, (count, score) in self.scores().items():
            found = Bootstrap(1, count).interval(score)
            rows.append([name, *(f"{value:.6f}" for value in (found.value, found.low, found.high)), str(count)])
            told.append(f"{name} {found.value:.4f} ({found.low:.4f} to {found.high:.4f})")
        if not told:
            return ""
        write_csv(self.table, rows)
        return f"Scores of {len(self.answers)} cases, 95 % intervals: {', '.join(told)}; in {self.table}"


def _class_scores(answers_NK: np.ndarray, truth_N: np.ndarray) -> dict[str, tuple[int, Score]]:
    right = (answers_NK.argmax(1) == truth_N).astype(float)
    found: dict[str, tuple[int, Score]] = {"accuracy": (len(right), MeanScore(right[None]))}
    if len(np.unique(truth_N)) > 1:
        found["auroc"] = (len(right), AreaScore(answers_NK[None], truth_N))
    return found


def _label_scores(answers_NK: np.ndarray, truth_NK: np.ndarray, names: Sequence[str]) -> dict[str, tuple[int, Score]]:
    known = ~np.isnan(truth_NK).any(1)
    answers, truth = answers_NK[known], truth_NK[known].astype(int)
    areas: dict[str, Score] = {}
    for i, name in enumerate(names):
        if len(np.unique(truth[:, i])) > 1:
            both = np.stack([1 - answers[:, i], answers[:, i]], 1)
            areas[name] = AreaScore(both[None], truth[:, i])
    of_each: dict[str, Score] = {f"auroc_{name}": area for name, area in areas.items()}
    mean: dict[str, Score] = {"auroc": MeanOfScores(list(areas.values()))} if areas else {}
    return {name: (len(truth), score) for name, score in (mean | of_each).items()}


def _truth(labels: Path, keys: Sequence[str], target: AbstractTarget) -> Mapping[str, np.ndarray]:
    rows: dict[str, np.ndarray] = {}
    for row in read_table(labels, required=_COLUMNS):
        where = f"--labels: {labels} line {row.line}"
        if row["key"] in rows:
            raise InputError(f"{where}: {row['key']!r} has a row already; give each case one")
        try:
            stored = target.encode(_value(row["label"], target)) if row["label"] else None
        except InputError as fault:
            raise InputError(f"{where}: label {fault}") from fault
        rows[row["key"]] = _array(stored, target)
    if missing := [key for key in keys if key not in rows]:
        close = close_names(missing[0], list(rows))
        hint = f"; close names there: {', '.join(map(repr, close))}" if close else ""
        raise InputError(
            f"--labels: {labels} has no row for {len(missing)} of {len(keys)} cases: {missing[0]!r}{hint}. "
            "The column key holds names as in predictions.csv; leave label empty where it is not known"
        )
    return rows


def _value(text: str, target: AbstractTarget) -> Any:
    """What a cell says: a name, an index or number, or names."""
    if target.names and not target.exclusive:
        return [name.strip() for name in text.split(";") if name.strip()]
    try:
        return text if text in target.names else float(text)
    except ValueError:
        return text


def _array(stored: Any, target: AbstractTarget) -> np.ndarray:
    if stored is None:
        return np.full(len(target.names) if target.names and not target.exclusive else (), np.nan)
    return np.array([np.nan if one is None else one for one in stored] if isinstance(stored, list) else stored, float)
