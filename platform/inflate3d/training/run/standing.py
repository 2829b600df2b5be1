"""How a run stands, in words: phase, step, losses, speed, time left, cost, and the commands that go on from it.

No torch is imported here: `platform status` answers at once.
"""

from __future__ import annotations

import os
import shlex
import socket
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from inflate3d.durations import duration
from inflate3d.errors import InputError
from inflate3d.training.checkpoints.store import Checkpoint, checkpoints_folder, list_checkpoints
from inflate3d.training.run.folder import ENVIRONMENT, read_environment, read_state

# A run writes its state every 10 s, between steps; longer silence means a very long step, or a dead run.
_SILENT_S = 300


def ago(moment: float) -> str:
    """Return how long a moment (seconds since 1970) is past, as in '12 min ago'."""
    return f"{duration(time.time() - moment)} ago"


def standing(folder: Path, when: Callable[[float], str] = ago) -> list[tuple[str, str]]:
    """Return (name, words) of what a run folder tells; [] where it tells nothing. when: how moments are said."""
    rows: list[tuple[str, str]] = []
    try:
        state = read_state(folder)
    except InputError as fault:  # of no use to anybody else
        rows.append(("phase", f"not known: {fault}"))
        state = None
    if state:
        step, steps = state["step"], state["max_steps"]
        rows.append(("phase", _phase(state, when)))
        rows.append(("step", f"{step} of {steps} ({100 * step / max(steps, 1):.1f} %)"))
        if losses := state["losses"]:
            rows.append(("loss", "  ".join(f"{name} {value:.4g}" for name, value in _shown(losses).items())))
        if rate := state.get("steps_per_s"):
            rows.append(("speed", f"{rate:.3g} steps/s, {100 * state['data_wait']:.1f} % of it waiting for data"))
            if step < steps:
                rows.append(("time left", f"{duration((steps - step) / rate)} at this speed"))
    if checkpoints := list_checkpoints(checkpoints_folder(folder)):
        last = checkpoints[-1]
        score = "" if last.score is None else f", val/score {last.score:.4f}"
        rows.append(("saved", f"step {last.step}{score}, {when(last.path.stat().st_mtime)}"))
    return rows


def start_command(folder: str | Path) -> str:
    """Return the command that started a run last, for a shell, from the folder that it was started in.

    "" where that was not recorded. InputError if environment.json is damaged.
    """
    starts = read_environment(folder) if (Path(folder) / ENVIRONMENT).is_file() else []
    if not starts:
        return ""
    place, command = starts[-1].get("folder"), shlex.join(starts[-1]["command"])
    return f"cd {shlex.quote(place)} && {command}" if place else command


def next_commands(folder: str, *, has_heads: bool) -> str:
    """Return what people do with a finished run, as commands to copy."""
    run = shlex.quote(folder)
    predict = [f"predict on files:  platform predict {run} --input FILES --output predictions"] if has_heads else []
    publish = f"publish weights:   platform publish {run} --output local-dir:{shlex.quote(folder + '/published')}"
    return "\n".join(["next:", *predict, publish + (" --heads" if has_heads else "")])


def training_cost(run_folder: Path, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return steps, device and hours from the first start to a checkpoint, as far as the run recorded them.

    File dates change when copied, and later starts do not belong to these weights.
    """
    try:
        starts = read_environment(run_folder)
        began = datetime.fromisoformat(starts[0]["time"])
        ended = datetime.fromisoformat(checkpoint.time) if checkpoint.time else None
        before = [s for s in starts if ended is None or datetime.fromisoformat(s["time"]) <= ended]
        device = (before or starts)[-1]["device"]
    except (OSError, ValueError, LookupError):
        return None
    hours = None if ended is None else round(max((ended - began).total_seconds(), 0) / 3600, 2)
    return {"steps": checkpoint.step, "device": device, "hours": hours}


def _phase(state: dict[str, Any], when: Callable[[float], str]) -> str:
    phase, silent = state["phase"], time.time() - state["time"]
    where = f"on {state['host']}, {state['world_size']} rank{'s' * (state['world_size'] > 1)}"
    if phase not in ("training", "validating"):
        hint = "; run the same command again to continue" if phase == "stopped" else ""
        return f"{phase} {when(state['time'])}{hint}"
    if state["host"] == socket.gethostname() and not _is_running(state["pid"]):
        return f"{phase} until {when(state['time'])}, {where}; the process is gone"
    warning = "; silent since then: a long step, or it hangs" if silent > _SILENT_S else ""
    return f"{phase} {where} (as of {when(state['time'])}{warning})"


def _shown(losses: dict[str, float]) -> dict[str, float]:
    """The loss of all tasks together, then each task's own, then the learning rate."""
    names = [name for name in losses if name == "train/loss"]
    names += [name for name in losses if name.endswith("/loss") and name != "train/loss"]
    return {name: losses[name] for name in [*names, "lr"] if name in losses}


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
