"""`platform finetune FOLDER`: what it refuses before it looks, and the whole road from a folder to a publication."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inflate3d
import numpy as np
import pytest
import yaml
from inflate3d.cli.main import main
from inflate3d.datasets.nnunet_raw import NnunetRaw

Command = Callable[..., Any]


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `mine` whose plan was written before, by the command as it is given without options."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    config = tmp_path / "runs/finetune_mine/finetune.yaml"
    config.parent.mkdir(parents=True)
    asked = {"folder": str(tmp_path / "mine"), "minutes": 30.0, "model": "tf_efficientnet_lite0_3d.v2", "dataset": None}
    config.write_text(f"# asked: {json.dumps({**asked, 'more': []})}\n")
    return config


def test_it_goes_on_with_the_plan_of_the_same_request_and_asks(
    planned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["finetune", "mine"]) == 2
    told = capsys.readouterr()
    assert "goes on with runs/finetune_mine/finetune.yaml" in told.out
    assert "no terminal to ask at" in told.err
    assert "--yes" in told.err


@pytest.mark.parametrize(
    ("answer", "starts"), [("", True), ("y", True), ("Yes ", True), ("n", False), ("what?", False)]
)
def test_a_person_is_asked_and_only_a_yes_starts(
    answer: str, starts: bool, planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Path] = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: answer)
    monkeypatch.setattr("inflate3d.cli.finetune._carry_out", lambda config, *rest: begun.append(config))
    assert main(["finetune", "mine"]) == 0
    assert begun == ([Path("runs/finetune_mine/finetune.yaml")] if starts else [])


def test_a_plan_for_another_request_is_not_taken(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "mine", "--minutes", "10", "--modality", "ct", "--yes"]) == 2
    told = capsys.readouterr().err
    assert "minutes was 30.0, is now 10.0; more was [], is now ['--modality', 'ct']" in told
    assert "--output ANOTHER" in told


def test_no_time_and_no_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["finetune", "mine", "--minutes", "0"]) == 2
    assert "--minutes is 0; it must be above 0" in capsys.readouterr().err
    assert main(["finetune", "mine"]) == 2
    assert "expected the folder that holds your cases" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            "image,label,split\na.npy,x,train\nb.npy,y,train\n",
            "all 2 cases are for training, so nothing could be",
        ),
        ("image,split\na.npy,train\nb.npy,val\n", "nothing is known of its volumes (no labels, masks or numbers)"),
    ],
)
def test_what_cannot_be_trained_or_scored_is_refused_before_a_net_is_built(
    table: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.arange(64, dtype=np.int16).reshape(4, 4, 4))
    (tmp_path / "cases.csv").write_text(table)
    assert main(["finetune", str(tmp_path), "--output", str(tmp_path / "run")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_folder_becomes_a_segmenter_that_names_its_classes(tmp_path: Path, platform_command: Command) -> None:
    raw = Path(NnunetRaw.write_example(tmp_path)["root"])
    words = ["finetune", raw.name, "--minutes", "0.1", "--output", "run", "--group_pattern", r"^(p\d+)_"]
    dry = platform_command(*words, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "nnunet_raw" in dry.stdout
    assert not (tmp_path / "run/shards").exists()
    values = yaml.safe_load((tmp_path / "run/finetune.yaml").read_text())
    assert values["data"]["datasets"]["toy"]["build"]["init_args"]["group_pattern"] == r"^(p\d+)_"
    assert values["model"]["backbone"]["stems"] == {"mri": 2}  # the shipped net takes one channel

    done = platform_command(*words, "--yes", timeout_s=600)
    assert done.returncode == 0, done.stderr
    assert "goes on with run/finetune.yaml" in done.stdout
    assert "test/mask/toy/dice " in done.stdout  # imagesTs has labels: these are the held-out cases
    assert done.stdout.strip().endswith(
        "on new files: platform predict run/published --input FILES --output predictions"
    )
    assert (tmp_path / "run/pictures.png").stat().st_size > 10_000
    segmenter = inflate3d.create_segmenter(f"local-dir:{tmp_path / 'run/published'}", pretrained=True)
    assert segmenter.label_names == ["background", "left", "right"]
