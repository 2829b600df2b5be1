"""A run's folder: its config is the truth, environment.json says what ran it, metrics.csv what came out.

No torch is imported here at module level: a command can refuse a differing config before it loads anything heavy.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from inflate3d.errors import InputError
from inflate3d.files import write_whole

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.csv"
STATE = "state.json"
_STATE_FORMAT = "inflate3d-state/1"
PACKAGES = (
    "inflate3d",
    "torch",
    "torchvision",
    "timm",
    "lightning",
    "torchmetrics",
    "torchio",
    "webdataset",
    "av",
    "numpy",
)

MAY_CHANGE = (
    "ckpt_path",
    "trainer.accelerator",
    "trainer.callbacks*",
    "trainer.default_root_dir",
    "trainer.devices",
    "trainer.enable_*",
    "trainer.limit_*_batches",
    "trainer.log_every_n_steps",
    "trainer.logger*",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.num_nodes",
    "trainer.profiler*",
    "trainer.strategy*",
    "trainer.val_check_interval",
    "data.root",
    "data.num_workers",
    "data.outage_s",
    "data.datasets.*.build*",
    "data.datasets.*.eval_batch_size",
    "data.datasets.*.max_eval_samples",
    "model.window_*",
    "pictures",
    "publish*",
)
"""Keys of a config that may differ when a run goes on: they change neither the data's order nor the weights' path."""


def write_config(run_folder: str | Path, config: Mapping[str, Any]) -> Path:
    """Write a run's config.yaml, whole or not at all."""
    import yaml

    path = Path(run_folder) / CONFIG
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, yaml.safe_dump(dict(config), sort_keys=False))
    return path


def read_run_config(run_folder: str | Path) -> dict[str, Any]:
    """Return a run's config.yaml as plain values. InputError if the folder is missing or no run's."""
    import yaml

    folder = Path(run_folder)
    if not folder.is_dir():
        raise InputError(f"no run folder {str(folder)!r}; give the run's trainer.default_root_dir")
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is no run folder: it has no {CONFIG}; give the run's trainer.default_root_dir")
    try:
        return yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except yaml.YAMLError as fault:
        reason = " ".join(str(fault).split())[:200]
        raise InputError(f"{folder / CONFIG} is no plain YAML ({reason}); take the run's own") from fault


def check_same_config(run_folder: str | Path, config: Mapping[str, Any]) -> None:
    """Refuse to go on with a run under another config; keys in MAY_CHANGE may differ. InputError names the keys.

    `config` holds plain values, as it would be written. Nothing is checked where the folder has no config.yaml yet.
    """
    import yaml

    path = Path(run_folder) / CONFIG
    if not path.is_file():
        return
    before, now = _flat(yaml.safe_load(path.read_text(encoding="utf-8")) or {}), _flat(config)
    changed = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not any(fnmatch(key, pattern) for pattern in MAY_CHANGE)
    ]
    if changed:
        shown = [f"  {key}: was {before.get(key)!r}, now {now.get(key)!r}" for key in changed[:4]]
        if len(changed) > 4:
            shown.append(f"  and {len(changed) - 4} more")
        raise InputError(
            f"{path}: this run was started with another config:\n"
            + "\n".join(shown)
            + "\nGo on with the old values, or start a new run: --trainer.default_root_dir ANOTHER_FOLDER"
        )


def record_environment(run_folder: str | Path, *, device: str) -> Path:
    """Add this start to environment.json: when, command, versions, git commit of the code, device."""
    path = Path(run_folder) / ENVIRONMENT
    path.parent.mkdir(parents=True, exist_ok=True)
    starts = json.loads(path.read_text(encoding="utf-8"))["starts"] if path.is_file() else []
    starts.append(
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "device": device,
            "cpus": os.cpu_count(),
            "git": git_commit(),
            "packages": {name: _version(name) for name in PACKAGES},
        }
    )
    write_whole(path, json.dumps({"format": "inflate3d-environment/1", "starts": starts}, indent=1))
    return path


def write_state(run_folder: str | Path, state: Mapping[str, Any]) -> Path:
    """Write state.json, whole: how far the run is now (`platform status`)."""
    path = Path(run_folder) / STATE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({"format": _STATE_FORMAT, **state}))
    return path


def read_state(run_folder: str | Path) -> dict[str, Any] | None:
    """Return what the run wrote last into state.json, or None where there is nothing that can be read."""
    try:
        content = json.loads((Path(run_folder) / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("format") == _STATE_FORMAT else None


def git_commit() -> str | None:
    """Return the commit of the code's own repository, with '+changes' where files differ; None if it is installed."""
    folder = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        own = subprocess.run(["git", "ls-files", "--error-unmatch", __file__], cwd=folder, capture_output=True)
        changes = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=folder, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    if own.returncode:  # installed into some other repository's tree
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def _flat(values: Any, at: str = "") -> dict[str, Any]:
    if isinstance(values, Mapping) and values:
        return {
            k: v for key, below in values.items() for k, v in _flat(below, f"{at}.{key}" if at else str(key)).items()
        }
    return {at: list(values) if isinstance(values, tuple) else values}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
