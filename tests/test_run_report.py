"""report.html of a run: its numbers are those of the run's files, at any time; what is damaged is said."""

from __future__ import annotations

import json
import logging
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inflate3d.cli.main import main
from inflate3d.cli.report import report_at_end
from inflate3d.data.shards.findings import Finding, save_noticed
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.files import sealed, write_whole
from inflate3d.reports import run_report
from inflate3d.reports.line_charts import MOST_POINTS, run_charts
from inflate3d.training.checkpoints.store import checkpoints_folder, write_checkpoint
from inflate3d.training.run.folder import ENVIRONMENT, write_config, write_state
from matplotlib.image import imsave

METRICS = "step,train/a/shapes/loss,val/score,lr\n10,2.0,,0.1\n20,nan,0.25,\n30,0.5,0.75,0.2\n"
STATE = {
    "time": 1.7e9,
    "phase": "finished",
    "step": 30,
    "max_steps": 30,
    "world_size": 2,
    "host": "node7",
    "pid": 1,
    "job": None,
    "losses": {"train/loss": 0.5, "lr": 0.2},
    "steps_per_s": 4.0,
    "samples_per_s": 64.0,
    "data_wait": 0.125,
    "memory_gb": 1.5,
}
START = {
    "time": "2023-11-14T20:00:00+00:00",
    "command": ["platform", "fit", "--config", "my run.yaml"],
    "folder": "/data/own place",
    "device": "cpu",
    "git": None,
    "packages": {"torch": "2.9", "timm": "1.0"},
}


class _Words(HTMLParser):
    """The text of a page, cell by cell, without style."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.hidden = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.hidden = tag == "style"

    def handle_data(self, data: str) -> None:
        if data.strip() and not self.hidden:
            self.words.append(" ".join(data.split()))


def words(path: Path) -> list[str]:
    parser = _Words()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser.words


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    build_shards(Toy(kind="volume_classification", num_train=3, num_val=2, size=16), root / "shapes", progress=False)
    return root


@pytest.fixture
def run(tmp_path: Path, shards: Path) -> Path:
    folder = tmp_path / "a run"
    datasets = {"shapes": {"batch_size": 2}, "gone": {"batch_size": 2}}
    tasks = {"a": {"class_path": "VolumeClassification", "init_args": {"datasets": ["shapes"]}}}
    write_config(folder, {"data": {"root": str(shards), "datasets": datasets}, "model": {"tasks": tasks}})
    write_state(folder, STATE)
    write_whole(folder / ENVIRONMENT, sealed({"format": "inflate3d-environment/1", "starts": [START]}))
    (folder / "metrics.csv").write_text(METRICS)
    for step, score in ((20, 0.75), (30, 0.25)):
        metrics = {"val/score": score, "val/a/shapes/accuracy": score / 2, "train/loss": 9.0}
        write_checkpoint(
            checkpoints_folder(folder), step, lambda path: path.write_bytes(b"w"), score=score, metrics=metrics
        )
    save_noticed(shards / "shapes", [])
    return folder


def page(run: Path) -> list[str]:
    return words(run_report.write_run_report(run))


def after(found: list[str], word: str, count: int = 1) -> list[str]:
    """What follows a word."""
    place = found.index(word)
    return found[place + 1 : place + 1 + count]


def test_a_finished_run_shows_its_files_numbers_and_what_comes_next(run: Path) -> None:
    found = page(run)
    assert after(found, "phase") == ["finished 2023-11-14 22:13 UTC"]
    assert after(found, "step") == ["30 of 30 (100.0 %)"]
    assert after(found, "best,", 9) == [
        *("step 20", "last,", "step 30", "score", "0.750", "0.250"),
        *("a/shapes/accuracy", "0.375", "0.125"),
    ]
    assert after(found, "time a step") == ["0.25 s (of the last interval that trained)"]
    assert after(found, "waiting for data") == ["12.5% of the time"]
    assert after(found, "shapes", 6) == ["a", "3", "2", "0", "volume, mask", "Apache-2.0"]
    commands = after(found, "What comes next")[0]
    assert f"platform predict '{run}' --input FILES" in commands
    assert f"platform publish '{run}' --output local-dir:'{run}/published' --heads" in commands
    assert "To go on" not in found


@pytest.mark.parametrize("phase", ["stopped", "training", "failed"])
def test_a_run_that_is_not_finished_shows_the_very_command_that_goes_on(run: Path, phase: str) -> None:
    write_state(run, {**STATE, "phase": phase, "step": 12})
    found = page(run)
    assert after(found, "To go on") == ["cd '/data/own place' && platform fit --config 'my run.yaml'"]
    assert after(found, "step") == ["12 of 30 (40.0 %)"]
    assert "What comes next" not in found


def test_a_run_whose_start_noted_no_folder_shows_the_command_alone(run: Path) -> None:
    old = {key: value for key, value in START.items() if key != "folder"}
    write_whole(run / ENVIRONMENT, sealed({"format": "inflate3d-environment/1", "starts": [old]}))
    write_state(run, {**STATE, "phase": "stopped"})
    assert after(page(run), "To go on") == ["platform fit --config 'my run.yaml'"]


def test_why_a_run_failed_is_said_on_its_page(run: Path) -> None:
    write_state(run, {**STATE, "phase": "failed"})
    (run / "failures").mkdir()
    (run / "failures" / "step-00000010-rank0.json").write_text(json.dumps({"faults": ["train/a/shapes/loss is nan"]}))
    assert after(page(run), "Why it failed") == ["train/a/shapes/loss is nan"]


def test_cases_are_sorted_by_their_first_score_the_worst_first(run: Path) -> None:
    (run / "scored").mkdir()
    table = "key,dice,dice_left\ngood,0.900000,0.9\nbad,0.100000,0.1\nsilent,,\nmiddle,0.500000,\nmean,0.5,0.5\n"
    (run / "scored" / "dice.csv").write_text(table)
    found = page(run)
    assert "4 of scored/dice.csv; sorted by dice" in found
    rows = ["bad", "0.100", "0.100", "middle", "0.500", "-", "good", "0.900", "0.900", "silent", "-", "-"]
    assert after(found, "dice_left", 12) == rows


def test_what_was_noticed_is_shown_by_dataset_and_what_is_gone_is_said(run: Path, shards: Path) -> None:
    facts = [Finding("duplicate", f"s{i}", "train", f"the image of t{i}") for i in range(5)]
    save_noticed(shards / "shapes", facts)
    found = page(run)
    assert after(found, "duplicate", 3) == ["the same image more than once", "5", "s0 (train): the image of t0"]
    assert "s2 (train): the image of t2" in found
    assert not any("t3" in word for word in found)
    assert any(word.startswith(f"gone: no shards in {shards / 'gone'}: no such folder") for word in found)


def test_the_page_holds_the_last_pictures_and_needs_nothing_but_itself(run: Path) -> None:
    (run / "predictions").mkdir()
    for step in (10, 20, 30):
        imsave(run / "predictions" / f"step-{step:08d}.png", np.full((4, 4), step / 30))
    text = run_report.write_run_report(run).read_text(encoding="utf-8")
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!data:image/png;base64,|file:)""", text) == []
    assert [m for m in re.findall(r"samples at step (\d+) \(", text)][::2] == ["30", "10"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("metrics.csv", "metrics.csv: line 2 is damaged"),
        ("state.json", "state.json: damaged"),
        (ENVIRONMENT, "environment.json: damaged"),
        ("dice.csv", "dice.csv: damaged: line 2"),
        ("pictures.png", "pictures.png: is no whole PNG"),
        ("failures/step-00000001-rank0.json", "rank0.json: damaged"),
    ],
)
def test_what_is_damaged_is_named_and_the_rest_is_shown(run: Path, name: str, said: str) -> None:
    if "failures" in name:
        write_state(run, {**STATE, "phase": "failed"})
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text("key,step\nx,y\n")
    found = page(run)
    assert sum(said in word for word in found) == (2 if name == "state.json" else 1)
    assert after(found, "best,", 3) == ["step 20", "last,", "step 30"]


def test_secrets_are_hidden_and_what_users_write_is_no_html(run: Path) -> None:
    tasks = {"<script>alert(1)</script>": {"class_path": "X"}}
    data = {"root": "https://me:hunter2@host/set?token=hunter3", "datasets": {"a": {}}}
    write_config(run, {"data": data, "model": {"tasks": tasks}})
    text = run_report.write_run_report(run).read_text(encoding="utf-8")
    assert "hunter" not in text
    assert "<script" not in text
    assert "its shards are elsewhere" in text


def test_curves_lie_where_their_rows_say() -> None:
    rows = [{"step": 10, "val/score": 0.25}, {"step": 20, "val/score": math.nan}, {"step": 50, "val/score": 0.75}]
    ((heading, (chart,)),) = run_charts(rows)
    assert (heading, chart["name"]) == ("validation", "score")
    assert chart["points"] == "0.00,75.00 100.00,25.00"  # of 0 to 1, downwards
    assert (chart["low"], chart["high"], chart["last"], chart["first_step"], chart["last_step"]) == (0, 1, 0.75, 10, 50)


def test_long_curves_are_thinned_and_say_so_and_keep_their_last_value() -> None:
    count = 3 * MOST_POINTS
    rows = [{"step": i, "train/a/shapes/loss": float(count - i)} for i in range(count)]
    ((heading, (chart,)),) = run_charts(rows)
    places = chart["points"].split()
    assert (heading, chart["every"], len(places)) == ("training losses", 3, MOST_POINTS + 1)
    assert places[1] == f"{100 * 3 / (count - 1):.2f},{100 * 3 / count:.2f}"
    assert places[-1] == f"100.00,{100 * (count - 1) / count:.2f}"


@pytest.mark.parametrize("fault", [OSError("disk full"), InputError("no"), KeyError("x")])
def test_a_page_that_cannot_be_written_is_one_line_and_no_error(
    fault: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: Any
) -> None:
    def broken(folder: Path) -> Path:
        raise fault

    monkeypatch.setattr(run_report, "write_run_report", broken)
    with caplog.at_level(logging.WARNING):
        report_at_end(Path("runs/a"))
    (line,) = caplog.messages
    assert line.startswith("no report.html: ")
    assert line.endswith("platform report runs/a")
    assert "\n" not in line
    assert capsys.readouterr().out == ""


def test_the_command_takes_a_run_or_shards_and_refuses_what_is_neither(
    run: Path, shards: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    assert main(["report", str(shards / "shapes")]) == 0
    assert f"look at it before training: {shards / 'shapes' / 'report.html'}" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty")]) == 2
    assert "is no run, set of shards or transfer: it has none of config.yaml, manifest.json, transfer.json" in (
        capsys.readouterr().err
    )
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "no folder" in capsys.readouterr().err
