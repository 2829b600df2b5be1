"""`platform status RUN`: its job in the queue, step, loss, data wait and time left; without SLURM too."""

from __future__ import annotations

import argparse
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inflate3d.cli.table import print_table
from inflate3d.durations import duration
from inflate3d.errors import InputError

if TYPE_CHECKING:
    from inflate3d.slurm.queue import JobState
    from inflate3d.slurm.record import JobRecord

# A run writes its state every 10 s, between steps; longer silence means a very long step, or a dead run.
_SILENT_S = 300


def add_parser(subparsers: Any) -> None:
    """Add `platform status`."""
    text = "progress of a run: its SLURM job, step, loss, data wait, time left"
    parser = subparsers.add_parser("status", help=text, description=text)
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run (trainer.default_root_dir) or of a sweep")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from inflate3d.slurm.queue import job_states
    from inflate3d.slurm.record import read_job

    folder = Path(args.run_folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"no run folder {args.run_folder!r}; give the run's trainer.default_root_dir")
    record = read_job(folder) or read_job(folder.parent)
    states = job_states(record.id) if record else []
    if record and record.tasks and record == read_job(folder):
        _print_sweep(record, states)
        return
    rows = [*_job_rows(record, states, folder), *_run_rows(folder)]
    if not rows:
        raise InputError(f"{folder} is not a run folder: it has neither state.json nor slurm/job.json")
    for name, text in rows:
        print(f"{name:<11}{text}")


def _print_sweep(record: JobRecord, states: list[JobState]) -> None:
    print(f"job {record.id}: {len(record.tasks)} tasks")
    of_task = {state.id.rpartition("_")[2]: state for state in states}
    rows = []
    for number, folder in record.tasks.items():
        found = dict(_run_rows(Path(folder)))
        job = of_task[number].state if number in of_task else "not in the queue"
        rows.append((number, job, found.get("step", "-"), found.get("loss", "-"), found.get("time left", "-"), folder))
    print_table(("task", "job", "step", "loss", "time left", "run folder"), rows)


def _job_rows(record: JobRecord | None, states: list[JobState], folder: Path) -> list[tuple[str, str]]:
    if record is None:
        return []
    if record.tasks:
        states = [state for state in states if state.id == f"{record.id}_{folder.name}"]
    log = record.log.replace("%j", record.id).replace("%A", record.id).replace("%a", folder.name)
    if not states:
        ago = duration(time.time() - record.submitted)
        return [("job", f"{record.id}, submitted {ago} ago: no longer in the queue"), ("log", log)]
    rows = []
    for state in states:
        parts = [f"{state.id} {state.state}"]
        if state.state == "PENDING":
            parts += [f"reason: {state.reason}"] * (state.reason != "None")  # SLURM says this before it has looked
        elif state.is_alive:
            parts.append(f"on {state.nodes}, {state.left} of {record.time} left")
        rows.append(("job", " ".join(parts)))
    return [*rows, ("log", log)]


def _run_rows(folder: Path) -> list[tuple[str, str]]:
    from inflate3d.training.checkpoints.store import checkpoints_folder, list_checkpoints
    from inflate3d.training.run.folder import read_state

    rows: list[tuple[str, str]] = []
    try:
        state = read_state(folder)
    except InputError as fault:  # of no use to anybody else
        rows.append(("phase", f"not known: {fault}"))
        state = None
    if state:
        step, steps = state["step"], state["max_steps"]
        rows.append(("phase", _phase(state)))
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
        rows.append(("saved", f"step {last.step}{score}, {duration(time.time() - last.path.stat().st_mtime)} ago"))
    return rows


def _phase(state: dict[str, Any]) -> str:
    phase, silent = state["phase"], time.time() - state["time"]
    where = f"on {state['host']}, {state['world_size']} rank{'s' * (state['world_size'] > 1)}"
    if phase not in ("training", "validating"):
        hint = "; run the same command again to continue" if phase == "stopped" else ""
        return f"{phase} {duration(silent)} ago{hint}"
    if state["host"] == socket.gethostname() and not _is_running(state["pid"]):
        return f"{phase} until {duration(silent)} ago, {where}; the process is gone"
    warning = "; silent since then: a long step, or it hangs" if silent > _SILENT_S else ""
    return f"{phase} {where} (as of {duration(silent)} ago{warning})"


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
