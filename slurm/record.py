"""What was submitted for a run: `slurm/job.json` in its folder, for `platform status` and against second writers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from inflate3d.errors import InputError
from inflate3d.files import read_sealed, sealed, write_whole
from inflate3d.slurm.script import Job

FOLDER = "slurm"
_FILE = "job.json"
_FORMAT = "inflate3d-job/1"


@dataclass(frozen=True)
class JobRecord:
    """A submitted job. tasks: for an array, the run folder of each task by its number. log: its folder is the run's."""

    id: str
    submitted: float
    time: str
    tasks: Mapping[str, str]
    log: str


def write_job(job: Job, number: str, *, tasks: Mapping[str, str]) -> None:
    """Write job.json beside the script, in one step."""
    content = {
        "format": _FORMAT,
        "id": number,
        "submitted": time.time(),
        "time": job.time,
        "tasks": dict(tasks),
        "log": str(job.folder / ("%A_%a.out" if job.array else "%j.out")),
    }
    write_whole(job.folder / _FILE, sealed(content))


def read_job(run_folder: str | Path) -> JobRecord | None:
    """Return the last submitted job of a run folder; None if there is none. InputError if its record is damaged."""
    path = Path(run_folder) / FOLDER / _FILE
    if not path.is_file():
        return None
    keys = tuple(JobRecord.__dataclass_fields__)
    remedy = "It names the job of this run; look whether that waits or runs (squeue), then delete the file"
    content = read_sealed(path, keys=("format", *keys), remedy=remedy)
    if content.pop("format", None) != _FORMAT or set(content) != set(keys) or not isinstance(content["tasks"], dict):
        raise InputError(f"{path}: damaged: no record of a job. {remedy}")
    return JobRecord(**content)
