"""What was submitted for a run: `slurm/job.json` in its folder, for `platform status` and against second writers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
    temporary = job.folder / f".{_FILE}.tmp"
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, job.folder / _FILE)


def read_job(run_folder: str | Path) -> JobRecord | None:
    """Return the last submitted job of a run folder; None if there is none."""
    try:
        content = json.loads((Path(run_folder) / FOLDER / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
        return None
    return JobRecord(**content)
