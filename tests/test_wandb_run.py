"""W&B by config: offline, in the run folder, one W&B run however often the run goes on."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from inflate3d.cli.config import Config
from inflate3d.cli.wandb_run import ID_FILE, log_config, settle_wandb
from inflate3d.errors import InputError


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


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"a b", b"\xff\xfe", b"x" * 200, b"id/../../x"])
def test_a_damaged_id_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ID_FILE).write_bytes(content)
    with pytest.raises(InputError, match="wandb_id: damaged: no id of a W&B run"):
        settle_wandb(config_with({"class_path": "WandbLogger"}, tmp_path))


def test_wandb_is_told_no_password_of_an_address() -> None:
    told: dict[str, Any] = {}
    config = SimpleNamespace(update=lambda values, **_: told.update(values))
    logger = type("WandbLogger", (), {"experiment": SimpleNamespace(config=config)})()
    log_config([logger], {"data": {"root": "https://me:pw@host/set?sig=1", "list": ["s3://a:b@c/d", 1]}, "seed": 2})
    assert told == {"data": {"root": "https://***@host/set?...", "list": ["s3://***@c/d", 1]}, "seed": 2}


def records(file: Path) -> list[Any]:
    """The records of a .wandb file: wandb's own message type, in the log format of LevelDB.

    wandb's reader is compiled into wandb-core and talks to a server; Python has none of its own.
    """
    from wandb.proto import wandb_internal_pb2

    content, at, parts, found = file.read_bytes(), 7, b"", []
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:  # a block's end, too short for a header
            at += left
            continue
        checksum, size, kind = struct.unpack("<IHB", content[at : at + 7])
        if kind == 0:
            break
        data = content[at + 7 : at + 7 + size]
        assert len(data) == size
        assert checksum, "every piece carries a checksum"
        parts += data
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    assert not parts, "the file ends within a record"
    return found


def history(found: list[Any]) -> list[dict[str, Any]]:
    """The logged rows: flat names, values from JSON."""
    rows = []
    for record in found:
        if record.WhichOneof("record_type") == "history":
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
    return rows


@pytest.mark.slow
def test_a_fit_with_wandb_offline_is_one_run_with_config_curves_and_pictures(
    tmp_path: Path, platform_command: Callable[..., Any]
) -> None:
    alone = ["--data.datasets.toy_volumes", "null", "--model.tasks.blobs", "null"]
    logger = ["--trainer.logger", "{class_path: WandbLogger, init_args: {project: p, offline: true}}"]
    command = ["fit", "--config", "quickstart.yaml", *alone, *logger, "--publish", "null"]
    command += ["--trainer.log_every_n_steps", "1", "--trainer.accumulate_grad_batches", "2", "--data.num_workers", "0"]
    for steps in ("1", "2"):
        done = platform_command(*command, "--trainer.max_steps", steps)
        assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "quickstart"
    name = (run / ID_FILE).read_text()
    files = sorted((run / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert len(files) == 2
    parts = [records(file) for file in files]
    runs = [record.run for part in parts for record in part if record.WhichOneof("record_type") == "run"]
    assert {r.run_id for r in runs} == {name}
    keys = {item.key for part in parts for r in part for item in [*r.config.update, *r.run.config.update]}
    assert {"model", "data", "trainer"} <= keys
    first, second = (history(part) for part in parts)
    for rows in (first, second):
        logged = {key for row in rows for key in row}
        assert {"train/motion/toy_video/loss", "train/shapes/toy_shapes/loss", "val/score", "lr"} <= logged
        assert any(key.startswith("val/pictures") for key in logged)
        assert "speed/data_wait" in logged
    steps_of = [{int(row["trainer/global_step"]) for row in rows if "train/loss" in row} for rows in (first, second)]
    assert steps_of == [{1}, {2}]
    assert [p.name for p in sorted((run / "predictions").iterdir())] == ["step-00000001.png", "step-00000002.png"]
    assert not (tmp_path / "wandb").exists()
    assert (run / "metrics.csv").is_file()
