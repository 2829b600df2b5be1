"""`platform status RUN`: its job in the queue, step, loss, data wait and time left; without SLURM too."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inflate3d.cli.table import print_table
from inflate3d.errors import InputError
from inflate3d.training.run.standing import ago, standing

if TYPE_CHECKING:
    from inflate3d.slurm.queue import JobState
    from inflate3d.slurm.record import JobRecord


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
    rows = [*_job_rows(record, states, folder), *standing(folder)]
    if not rows:
        raise InputError(f"{folder} is not a run folder: it has neither state.json nor slurm/job.json")
    for name, text in rows:
        print(f"{name:<11}{text}")


def _print_sweep(record: JobRecord, states: list[JobState]) -> None:
    print(f"job {record.id}: {len(record.tasks)} tasks")
    of_task = {state.id.rpartition("_")[2]: state for state in states}
    rows = []
    for number, folder in record.tasks.items():
        found = dict(standing(Path(folder)))
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
        return [("job", f"{record.id}, submitted {ago(record.submitted)}: no longer in the queue"), ("log", log)]
    rows = []
    for state in states:
        parts = [f"{state.id} {state.state}"]
        if state.state == "PENDING":
            parts += [f"reason: {state.reason}"] * (state.reason != "None")  # SLURM says this before it has looked
        elif state.is_alive:
            parts.append(f"on {state.nodes}, {state.left} of {record.time} left")
        rows.append(("job", " ".join(parts)))
    return [*rows, ("log", log)]
