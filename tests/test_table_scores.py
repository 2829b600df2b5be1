"""Predicted classes, labels and numbers against a CSV: the scores, their intervals, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from inflate3d.contracts import AbstractTarget
from inflate3d.errors import InputError
from inflate3d.evaluation.prediction.answerers import Answering
from inflate3d.evaluation.prediction.predict import choose_head
from inflate3d.evaluation.prediction.table_scores import TableScores
from inflate3d.targets import ClassTarget, MaskTarget, MultiLabelTarget, ValueTarget
from toy_batches import toy_card

GLANDS = ClassTarget(("normal", "mass"))


def scored(folder: Path, target: AbstractTarget, labels: str, answers: dict[str, list[float] | float]) -> dict:
    (folder / "labels.csv").write_text(labels)
    scores = TableScores(folder / "labels.csv", list(answers), target, folder / "scores.csv")
    for key, answer in answers.items():
        scores.add(key, torch.tensor(answer))
    told = scores.close()
    with (folder / "scores.csv").open(newline="") as file:
        rows = {row["score"]: row for row in csv.DictReader(file)}
    for name, row in rows.items():
        assert f"{name} {float(row['value']):.4f}" in told
        assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
    return {name: (float(row["value"]), int(row["cases"])) for name, row in rows.items()}


def test_classes_have_accuracy_and_area_of_the_cases_that_are_known(tmp_path):
    labels = "key;label\na;mass\nb;0\nc;mass\nd;normal\ne;\nnot asked for;mass\n"  # a spreadsheet's semicolons
    answers = {k: [1 - p, p] for k, p in (("a", 0.9), ("b", 0.2), ("c", 0.3), ("d", 0.4), ("e", 1.0))}
    assert scored(tmp_path, GLANDS, labels, answers) == {"accuracy": (0.75, 4), "auroc": (0.75, 4)}


def test_labels_that_hold_together_have_an_area_each(tmp_path):
    target = MultiLabelTarget(("cyst", "mass"))
    labels = "key,label\na,cyst; mass\nb,cyst\nc,;\n"
    answers = {"a": [0.9, 0.1], "b": [0.8, 0.2], "c": [0.1, 0.3]}
    found = scored(tmp_path, target, labels, answers)
    assert found == {"auroc": (0.5, 3), "auroc_cyst": (1.0, 3), "auroc_mass": (0.0, 3)}


def test_numbers_have_the_mean_error(tmp_path):
    found = scored(tmp_path, ValueTarget("years"), "key,label\na,40\nb,50\nc,\n", {"a": 42.0, "b": 47.0, "c": 1.0})
    assert found == {"mean_absolute_error": (2.5, 2)}


def test_the_interval_is_the_bootstraps_of_a_proportion(tmp_path):
    keys = [f"k{i}" for i in range(100)]
    (tmp_path / "l.csv").write_text("key,label\n" + "".join(f"{key},normal\n" for key in keys))
    scores = TableScores(tmp_path / "l.csv", keys, GLANDS, tmp_path / "scores.csv")
    for i, key in enumerate(keys):
        scores.add(key, torch.tensor([1.0, 0.0] if i < 80 else [0.0, 1.0]))
    scores.close()
    _, row = (tmp_path / "scores.csv").read_text().splitlines()
    value, low, high = map(float, row.split(",")[1:4])
    assert value == 0.8
    half = 1.96 * np.sqrt(0.8 * 0.2 / 100)
    assert low == pytest.approx(0.8 - half, abs=0.015)
    assert high == pytest.approx(0.8 + half, abs=0.015)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("key,label\na,mass\n", r"no row for 1 of 2 cases: 'bb'\. The column key"),
        ("key,label\na,mass\nb,mass\n", r"no row for 1 of 2 cases: 'bb'; close names there: 'b'"),
        ("key,label\na,mass\nbb,mas\n", r"labels\.csv line 3: label .*unknown class 'mas'; close names: 'mass'"),
        ("key,label\na,2\nbb,0\n", r"line 2: label is 2\.0; allowed: 0 to 1"),
        ("key,label\na,0\na,1\nbb,0\n", r"line 3: 'a' has a row already"),
        ("name,label\na,0\nbb,1\n", r"key"),
    ],
)
def test_what_does_not_fit_is_named_with_its_line(tmp_path, labels, message):
    (tmp_path / "labels.csv").write_text(labels)
    with pytest.raises(InputError, match=message):
        TableScores(tmp_path / "labels.csv", ["a", "bb"], GLANDS, tmp_path / "scores.csv")


def test_labels_say_which_of_two_heads_is_meant(tmp_path):
    card = toy_card("scan", mask=MaskTarget(("background", "organ")))
    heads = {
        "organs": Answering("scan", card, MaskTarget(("background", "organ"))),
        "gland": Answering("scan", card, GLANDS),
    }
    assert choose_head(heads, {"volume"}, None, labels=tmp_path) == "organs"
    assert choose_head(heads, {"volume"}, None, labels=tmp_path / "labels.csv") == "gland"
    with pytest.raises(InputError, match="which head is to answer"):
        choose_head(heads, {"volume"}, None)
