"""A run's folder: its config is the truth, environment.json says what ran it, metrics.csv what came out.

No torch is imported here at module level: a command can refuse a differing config before it loads anything heavy.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from inflate3d.errors import InputError
from inflate3d.files import read_sealed, sealed, set_aside, write_whole
from inflate3d.remote.address import without_secrets

log = logging.getLogger(__name__)
CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.csv"
STATE = "state.json"
FAILURES = "failures"
_ENVIRONMENT_FORMAT = "inflate3d-environment/1"
_STATE_FORMAT = "inflate3d-state/1"
_STATE_KEYS = ("format", "time", "phase", "step", "max_steps", "world_size", "host", "pid", "job", "losses")
_RATES = ("steps_per_s", "samples_per_s", "data_wait", "memory_gb")
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
    "trainer.compile",
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


_ANEW = (
    "Put a copy back; or delete the file and start the run again by the very config of its first start: it is written "
    "anew. If it was edited on purpose, delete its first line"
)


def write_config(run_folder: str | Path, config: Mapping[str, Any]) -> Path:
    """Write a run's config.yaml, whole or not at all."""
    import yaml

    path = Path(run_folder) / CONFIG
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dict(config), sort_keys=False).encode()
    write_whole(path, _seal(text) + b"\n" + text)
    return path


def read_run_config(run_folder: str | Path) -> dict[str, Any]:
    """Return a run's config.yaml as plain values. InputError if the folder is missing or no run's, or it is damaged."""
    folder = Path(run_folder)
    if not folder.is_dir():
        raise InputError(f"no run folder {str(folder)!r}; give the run's trainer.default_root_dir")
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is no run folder: it has no {CONFIG}; give the run's trainer.default_root_dir")
    return _read_config(folder / CONFIG)


def _read_config(path: Path) -> dict[str, Any]:
    import yaml

    raw = path.read_bytes()
    first, _, rest = raw.partition(b"\n")
    try:
        if (first.startswith(b"#") or b"sha256" in first) and first != _seal(rest):
            raise ValueError("it differs from what was written, sha256")
        content = yaml.safe_load(raw.decode())
    except (yaml.YAMLError, ValueError, RecursionError) as fault:
        raise InputError(f"{path}: damaged ({' '.join(str(fault).split())[:200]}). {_ANEW}") from fault
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: damaged ({'it holds no keys' if raw else 'it is empty'}). {_ANEW}")
    return content


def _seal(text: bytes) -> bytes:
    """Return the first line of a config.yaml; the files of older versions have none."""
    return b"# sha256 of what follows: " + hashlib.sha256(text).hexdigest().encode()


def check_same_config(
    run_folder: str | Path, config: Mapping[str, Any], *, complete: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> None:
    """Refuse to go on with a run under another config; keys in MAY_CHANGE may differ. InputError names the keys.

    `config` holds plain values, as it would be written. `complete` gives the run's config the defaults of arguments
    that it lacks, since it may be of an older version. Nothing is checked where the folder has no config.yaml yet.
    """
    path = Path(run_folder) / CONFIG
    if not path.is_file():
        return
    before, now = _flat(complete(_read_config(path))), _flat(config)
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
    """Add this start to environment.json: when, where, command (no passwords), versions, commit of the code, device.

    A damaged one is given another name, which is said: the run does not need it.
    """
    path = Path(run_folder) / ENVIRONMENT
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        starts = read_environment(run_folder) if path.is_file() else []
    except InputError as fault:
        log.warning("%s The run goes on; what was left of it is kept as %s", fault, set_aside(path).name)
        starts = []
    starts.append(
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": [Path(sys.argv[0]).name, *map(without_secrets, sys.argv[1:])],
            "folder": os.getcwd(),
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "device": device,
            "cpus": os.cpu_count(),
            "git": git_commit(),
            "packages": {name: _version(name) for name in PACKAGES},
        }
    )
    write_whole(path, sealed({"format": _ENVIRONMENT_FORMAT, "starts": starts}))
    return path


def record_settings(run_folder: str | Path, settings: Mapping[str, Any]) -> None:
    """Add to the last start of environment.json how it computes on its device."""
    starts = read_environment(run_folder)
    starts[-1]["settings"] = dict(settings)
    write_whole(Path(run_folder) / ENVIRONMENT, sealed({"format": _ENVIRONMENT_FORMAT, "starts": starts}))


def read_environment(run_folder: str | Path) -> list[dict[str, Any]]:
    """Return the starts that environment.json lists. InputError if it is damaged."""
    path = Path(run_folder) / ENVIRONMENT
    remedy = "It lists how the run was started; no result depends on it."
    starts = read_sealed(path, keys=("format", "starts"), remedy=remedy).get("starts")
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise InputError(f"{path}: damaged: it has no list of starts. {remedy}")
    return starts


def write_state(run_folder: str | Path, state: Mapping[str, Any]) -> Path:
    """Write state.json, whole: how far the run is now (`platform status`)."""
    path = Path(run_folder) / STATE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, sealed({"format": _STATE_FORMAT, **state}))
    return path


def read_state(run_folder: str | Path) -> dict[str, Any] | None:
    """Return what the run wrote last into state.json, None where there is none. InputError if it is damaged."""
    path = Path(run_folder) / STATE
    if not path.is_file():
        return None
    remedy = "A run that goes on writes it anew"
    content = read_sealed(path, keys=(*_STATE_KEYS, *_RATES), remedy=remedy)
    if content.get("format") != _STATE_FORMAT or not set(_STATE_KEYS) <= set(content):
        raise InputError(f"{path}: damaged: keys are missing. {remedy}")
    return content


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
