"""A stranger's package, written as CONTRIBUTING.md tells: a task without labels and an unlabelled dataset, in a fit."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = """
seed_everything: 0
ckpt_path: last
trainer: {{default_root_dir: run, accelerator: cpu, max_steps: {steps}, log_every_n_steps: 1, val_check_interval: 6}}
model:
  backbone: {{name: test_resnet, timm_kwargs: {{output_stride: 16}}, stems: {{mri: 1, ct: 1}}}}
  optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 4.0e-3}}}}
  tasks:
    hidden: {{class_path: HiddenBlocks, init_args: {{datasets: [scans]}}}}
    blobs: {{class_path: MedicalSegmentation, init_args: {{datasets: [blobs]}}}}
data:
  root: shards
  datasets:
    scans:
      batch_size: 2
      sample: {{patch_size: [16, 16, 16]}}
      build: {{class_path: ScanFolder, init_args: {{root: raw}}}}
    blobs:
      batch_size: 2
      sample: {{patch_size: [16, 16, 16]}}
      build: {{class_path: Toy, init_args: {{kind: volume_segmentation, num_train: 8, num_val: 2}}}}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install the package where a process finds it, and return that process's environment."""
    site = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "plug_ins"
    subprocess.run(["cp", "-r", str(ROOT / "tests" / "plug_ins"), str(source)], check=True)  # a build leaves files
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--disable-pip-version-check", "--target", str(site), str(source)], check=True)
    return {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def platform(environment: dict[str, str], folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-P", "-m", "inflate3d.cli.main", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "run" / "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_lists_show_the_plug_ins(installed: dict[str, str], tmp_path: Path) -> None:
    assert "Masked volume modelling" in platform(installed, tmp_path, "tasks", "list")
    assert "A folder of NIfTI volumes without any labels" in platform(installed, tmp_path, "datasets", "list")


@pytest.mark.slow
def test_fit_trains_an_unlabelled_dataset_by_a_task_without_labels(installed: dict[str, str], tmp_path: Path) -> None:
    write = (
        "from pathlib import Path; from own_plug_ins import scan_folder as n; n.ScanFolder.write_example(Path('raw'))"
    )
    subprocess.run([sys.executable, "-P", "-c", write], check=True, env=installed, cwd=tmp_path)
    (tmp_path / "own.yaml").write_text(CONFIG.format(steps=12), encoding="utf-8")
    platform(installed, tmp_path, "fit", "--config", "own.yaml")
    whole = rows(tmp_path)
    losses = [float(row["train/hidden/scans/loss"]) for row in whole if row.get("train/hidden/scans/loss")]
    assert len(losses) >= 5
    assert losses[-1] < losses[0]
    held_out = [float(row["val/hidden/scans/loss"]) for row in whole if row.get("val/hidden/scans/loss")]
    assert held_out
    assert all(math.isfinite(loss) for loss in held_out)
    scores = [float(row["val/score"]) for row in whole if row.get("val/score")]
    dice = [float(row["val/blobs/blobs/dice"]) for row in whole if row.get("val/blobs/blobs/dice")]
    assert scores == dice  # a task without a score does not enter val/score
    published = platform(installed, tmp_path, "publish", "run", "--output", "local-dir:out", "--heads")
    assert "out" in published


@pytest.mark.slow
def test_the_contract_tests_walk_the_plug_ins(installed: dict[str, str]) -> None:
    files = ["tests/test_every_task.py", "tests/test_every_dataset.py"]
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    done = subprocess.run(
        [*command, "-k", "hidden_blocks or scan_folder", *files],
        cwd=ROOT,
        env=installed,
        capture_output=True,
        encoding="utf-8",
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert (
        "hidden_blocks"
        in subprocess.run(
            [*command, "--collect-only", "-k", "hidden_blocks", files[0]],
            cwd=ROOT,
            env=installed,
            capture_output=True,
            encoding="utf-8",
            timeout=500,
        ).stdout
    )
