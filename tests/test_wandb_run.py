"""W&B by config: offline, in the run folder, one W&B run however often the run goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inflate3d.cli.config import Config
from inflate3d.cli.wandb_run import ID_FILE, settle_wandb


def config_with(logger: Any, folder: Path) -> Config:
    return Config({"trainer": {"default_root_dir": str(folder), "logger": logger}})


def test_files_go_into_the_run_folder_and_the_id_stays(tmp_path: Path) -> None:
    first, second = ({"class_path": "WandbLogger", "init_args": {"project": "p"}} for _ in range(2))
    settle_wandb(config_with(first, tmp_path))
    settle_wandb(config_with([second], tmp_path))
    assert first == second
    assert first["init_args"] == {"project": "p", "save_dir": str(tmp_path), "id": (tmp_path / ID_FILE).read_text()}
    assert first["dict_kwargs"] == {"resume": "allow"}


def test_what_the_user_says_stays_and_other_loggers_are_left_alone(tmp_path: Path) -> None:
    own = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"id": "mine", "save_dir": "there"}}
    settle_wandb(config_with(own, tmp_path))
    assert own["init_args"] == {"id": "mine", "save_dir": "there"}
    for other in (None, False, {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "x"}}):
        before = dict(other) if isinstance(other, dict) else other
        settle_wandb(config_with(other, tmp_path))
        assert other == before
    assert not (tmp_path / ID_FILE).exists()


@pytest.mark.slow
def test_a_fit_with_wandb_offline_goes_on_in_the_same_wandb_run(
    tmp_path: Path, platform_command: Callable[..., Any]
) -> None:
    alone = ["--data.datasets.toy_video", "null", "--model.tasks.motion", "null"]
    alone += ["--data.datasets.toy_volumes", "null", "--model.tasks.blobs", "null"]
    logger = ["--trainer.logger", "{class_path: WandbLogger, init_args: {project: p, offline: true}}"]
    command = ["fit", "--config", "quickstart.yaml", *alone, *logger, "--publish", "null", "--pictures", "false"]
    for steps in ("1", "2"):
        done = platform_command(*command, "--trainer.max_steps", steps, "--data.num_workers", "0")
        assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "quickstart"
    name = (run / ID_FILE).read_text()
    assert len(list((run / "wandb").glob(f"offline-run-*-{name}"))) == 2
    assert not (tmp_path / "wandb").exists()
    assert (run / "metrics.csv").is_file()
