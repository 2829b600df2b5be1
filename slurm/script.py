"""The sbatch script of a job, from a template, the site's settings and the command line."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from inflate3d.errors import InputError
from inflate3d.slurm.site import Site
from jinja2 import Environment, FileSystemLoader, StrictUndefined

TASK = "$SLURM_ARRAY_TASK_ID"
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class Job:
    """What one sbatch script runs.

    command: the words after `platform`; the shell replaces $SLURM_ARRAY_TASK_ID in them. run: the run's folder if the
    command is a fit, which stops and saves on request; may contain the task's number. folder: of script and
    logs. array: in sbatch's format ("0-7"). depends_on: a job that must have succeeded. wandb: the run logs to W&B.
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    time: str
    run: str | None = None
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    array: str | None = None
    depends_on: str | None = None
    wandb: bool = False


def render_script(job: Job, site: Site, *, working_folder: Path) -> str:
    """Return the script's text. working_folder: the base of relative paths in the config."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    python = [*shlex.split(site.container or ""), site.python or sys.executable, "-m"]
    start = [*site.srun, *python, "inflate3d.cli.main"]
    command = " ".join([*map(shlex.quote, start), *map(_with_task, job.command)])
    return environment.get_template("job.sbatch.jinja").render(
        options=_options(job, site),
        folder=shlex.quote(str(working_folder)),
        environment=[(name, shlex.quote(value)) for name, value in site.environment.items()],
        modules=[shlex.quote(module) for module in site.modules],
        setup=(site.setup or "").rstrip("\n"),
        command=command,
        run=None if job.run is None else _with_task(job.run),
        wandb=shlex.join([*python, "wandb", "beta", "core"]) if job.wandb else None,
        job_folder=shlex.quote(str(job.folder)),
    )


def seconds_of(time: str) -> int:
    """Return the seconds of a SLURM time: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S. InputError for anything else."""
    found = _TIME.fullmatch(time)
    if not found:
        raise InputError(f"--time is {time!r}; expected hours:minutes:seconds, or days-hours:minutes:seconds")
    days, *rest = found.groups()
    numbers = [int(n) for n in rest if n is not None]
    if days is None:  # minutes come first, unless there are hours
        hours, minutes, seconds = (numbers if len(numbers) == 3 else [0, *numbers, 0])[:3]
    else:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    return 86400 * int(days or 0) + 3600 * hours + 60 * minutes + seconds


def _options(job: Job, site: Site) -> list[str]:
    log = str(job.folder / ("%A_%a.out" if job.array else "%j.out"))
    given = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": job.tasks_per_node,
        "cpus-per-task": site.cpus_per_task,
        "time": job.time,
        "account": site.account,
        "partition": site.partition,
        "qos": site.qos,
        "constraint": site.constraint,
        "mem": site.memory,
        "array": job.array,
        "dependency": f"afterok:{job.depends_on}" if job.depends_on else None,
        "signal": f"B:USR1@{site.save_before_s}" if site.save_before_s else None,
        "output": f'"{log}"' if " " in log else log,
        "open-mode": "append",
    }
    if job.gpus_per_node:
        key, value = (
            ("gres", f"gpu:{job.gpus_per_node}") if site.gpu_option == "gres" else (site.gpu_option, job.gpus_per_node)
        )
        given[key] = value
    # --requeue allows the script to requeue itself; without it scontrol refuses.
    return [*(f"--{k}={v}" for k, v in given.items() if v is not None), "--requeue", *site.sbatch]


def _with_task(word: str) -> str:
    """Quote a word for the shell, except the number of the array's task."""
    return '"${SLURM_ARRAY_TASK_ID}"'.join(shlex.quote(part) if part else "" for part in word.split(TASK)) or "''"
