"""The first hour of a new user: the quickstart to its last line, and a folder of one's own to a held-out Dice."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


@pytest.mark.slow
def test_the_quickstart_learns_and_its_last_line_works_when_pasted(tmp_path: Path, platform_command: Command) -> None:
    done = platform_command("fit", "--config", "quickstart.yaml", timeout_s=600)
    assert done.returncode == 0, done.stderr
    *before, last = done.stdout.strip().splitlines()
    (picture,) = [line.removeprefix("pictures: ") for line in before if line.startswith("pictures: ")]
    assert (tmp_path / picture).stat().st_size > 10_000
    assert "report: runs/quickstart/report.html" in before[-4:]
    assert ">finished 20" in (tmp_path / "runs/quickstart/report.html").read_text(encoding="utf-8")
    metrics = (tmp_path / "runs/quickstart/metrics.csv").read_text().splitlines()
    scores = [float(row.split(",")[-1]) for row in metrics[1:] if row.split(",")[-1]]
    assert metrics[0].endswith("val/score")
    assert scores[-1] > 0.8
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    pasted = subprocess.run(last, shell=True, cwd=elsewhere, capture_output=True, encoding="utf-8", timeout=300)
    assert pasted.returncode == 0, pasted.stderr
    assert pasted.stdout.strip() == "torch.Size([1, 96])"

    again = platform_command("fit", "--config", "quickstart.yaml")
    assert again.returncode == 0, again.stderr
    assert "this run has finished: 120 of 120 steps" in again.stdout
    assert again.stdout.strip().splitlines()[-1] == last


@pytest.mark.slow
@pytest.mark.data
def test_twenty_cases_of_ones_own_give_a_held_out_dice_with_one_command(
    tmp_path: Path, shared_data: Path, platform_command: Command
) -> None:
    raw = tmp_path / "mine"
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for label in sorted((shared_data / "Task04_Hippocampus/labelsTr").glob("hippo*.nii.gz"))[:20]:
        name = label.name.removesuffix(".nii.gz")
        shutil.copy(label, raw / "labelsTr" / label.name)
        shutil.copy(label.parents[1] / "imagesTr" / label.name, raw / "imagesTr" / f"{name}_0000.nii.gz")
    facts = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "anterior": 1, "posterior": 2}}
    (raw / "dataset.json").write_text(json.dumps({**facts, "numTraining": 20, "file_ending": ".nii.gz"}))

    where = ["--data.datasets.mine.build.init_args.root", "mine", "--model.backbone.name", "test_resnet"]
    short = ["--model.backbone.pretrained", "false", "--trainer.max_steps", "60", "--trainer.val_check_interval", "60"]
    size = ["--data.datasets.mine.sample.patch_size", "[32, 48, 32]", "--data.num_workers", "0"]
    started = time.monotonic()
    done = platform_command("fit", "--config", "finetune_segmentation.yaml", *where, *short, *size, timeout_s=600)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "validation" in line]
    score = float(line.split("score ")[1].split()[0])
    print(f"held-out Dice {score:.2f} after {time.monotonic() - started:.0f} s")
    assert score > 0.5
