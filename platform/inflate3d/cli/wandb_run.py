"""W&B in a run folder: its files go there, and a resumed run stays one W&B run (`wandb_id`)."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from inflate3d.cli.config import Config

ID_FILE = "wandb_id"


def settle_wandb(config: Config) -> None:
    """Set save_dir, id and resume of a WandbLogger where the config leaves them open. Other loggers are unchanged."""
    loggers = config.get("trainer", "logger")
    folder = Path(str(config.get("trainer", "default_root_dir", default=".")))
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, dict) and str(logger.get("class_path", "")).rpartition(".")[2] == "WandbLogger":
            options: dict[str, Any] = logger.setdefault("init_args", {})
            options.setdefault("save_dir", str(folder))
            if "id" not in options and "version" not in options:
                options["id"] = _id(folder)
                # An argument of wandb.init, to which WandbLogger passes the rest.
                logger.setdefault("dict_kwargs", {}).setdefault("resume", "allow")


def log_config(loggers: Iterable[Any], config: dict[str, Any]) -> None:
    """Give a run's whole config to its W&B loggers; a resumed run may have other values (devices, max_steps)."""
    for logger in loggers:
        if type(logger).__name__ == "WandbLogger":
            logger.experiment.config.update(config, allow_val_change=True)


def _id(folder: Path) -> str:
    """Return the run's id; the first start makes it, or the first of many processes."""
    file, new = folder / ID_FILE, secrets.token_hex(4)
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        whole = folder / f".{ID_FILE}.{new}"
        whole.write_text(new, encoding="utf-8")
        with contextlib.suppress(FileExistsError):
            os.link(whole, file)
        whole.unlink()
    return file.read_text(encoding="utf-8").strip()
