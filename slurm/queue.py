"""SLURM's own commands: submit a script, and find out what became of a job."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from inflate3d.errors import InputError

_ALIVE = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING"}
_TIMEOUT_S = 60


@dataclass(frozen=True)
class JobState:
    """What SLURM reports of a job or of one task of an array. state: SLURM's word, such as RUNNING or TIMEOUT.

    reason: why it waits; nodes: where it runs; left: time left; all as SLURM writes them, "" where it reports none.
    """

    id: str
    state: str
    reason: str = ""
    nodes: str = ""
    left: str = ""

    @property
    def is_alive(self) -> bool:
        """Whether the job waits, runs or is about to run again."""
        return self.state in _ALIVE


def need_slurm() -> None:
    """Raise InputError if sbatch is not installed."""
    if shutil.which("sbatch") is None:
        raise InputError(
            "no `sbatch` on this machine: submit from a login node of a SLURM cluster; --dry-run shows the script"
        )


def submit(script: Path) -> str:
    """Submit a script; return the job's id. InputError with sbatch's message if it refuses."""
    need_slurm()
    done = _run("sbatch", "--parsable", str(script))
    if done is None or done.returncode:
        words = done.stderr.strip().removeprefix("sbatch: error: ") if done else f"no answer within {_TIMEOUT_S} s"
        raise InputError(f"sbatch refused {script}: {words}")
    return done.stdout.strip().partition(";")[0]


def job_states(job: str) -> list[JobState]:
    """Return what SLURM knows of a job, one entry per task of an array; [] if nothing, or without SLURM.

    1. squeue: waiting and running jobs  2. sacct: ended jobs, if accounting is on  3. scontrol: jobs that just ended
    """
    queued = _lines("squeue", "--noheader", "--array", f"--jobs={job}", "--states=all", "--format=%i|%T|%r|%N|%L")
    if found := [JobState(*fields) for line in queued if len(fields := line.split("|")) == 5]:
        return found
    ended = _lines("sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={job}", "--format=JobID,State")
    if found := [JobState(i, state.split()[0]) for i, _, state in (line.partition("|") for line in ended) if state]:
        return found
    shown = _lines("scontrol", "--oneliner", "show", "job", job)
    pairs = [dict(p.split("=", 1) for p in line.split() if "=" in p) for line in shown]
    return [JobState(p["JobId"], p["JobState"]) for p in pairs if "JobState" in p]


def _lines(*command: str) -> list[str]:
    done = _run(*command) if shutil.which(command[0]) else None
    return [] if done is None or done.returncode else [line for line in done.stdout.splitlines() if line.strip()]


def _run(*command: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return None
