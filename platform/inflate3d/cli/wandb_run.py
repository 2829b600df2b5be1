"""W&B in a run folder: its files go there, and a resumed run stays one W&B run (`wandb_id`)."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from inflate3d.cli.config import Config
from inflate3d.errors import InputError
from inflate3d.files import write_whole
from inflate3d.remote.address import without_secrets

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
    """Give a run's whole config to its W&B loggers, no passwords; a resumed run may have other values (max_steps)."""
    for logger in loggers:
        if type(logger).__name__ == "WandbLogger":
            logger.experiment.config.update(_printable(config), allow_val_change=True)


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _printable(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_printable(below) for below in value]
    return without_secrets(value) if isinstance(value, str) else value


def _id(folder: Path) -> str:
    """Return the run's id; the first start makes it, or the first of many processes."""
    file, new = folder / ID_FILE, secrets.token_hex(4)
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        whole = folder / f".{ID_FILE}.{new}"
        write_whole(whole, new)
        with contextlib.suppress(FileExistsError):
            os.link(whole, file)
        whole.unlink()
    known = file.read_bytes().strip()
    if not re.fullmatch(rb"[\w-]{1,128}", known):
        raise InputError(
            f"{file}: damaged: no id of a W&B run. Write the id that its page shows into it, or delete it: then this "
            "goes on as another W&B run"
        )
    return known.decode()
