"""`platform submit`: a fit, a sweep, a build of shards or a transfer as SLURM jobs that save and requeue themselves."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inflate3d.errors import InputError

if TYPE_CHECKING:
    from inflate3d.cli.submission import Submission
    from inflate3d.slurm.site import Site

_EPILOG = """\
platform submit --config multitask.yaml --nodes 2 --gpus-per-node 8 --time 12:00:00 -- --model.optimizer.lr 1e-3
platform submit --config multitask.yaml --array sweep.txt --gpus-per-node 1 --time 2:00:00
    one task per line of sweep.txt; a line holds the overrides of its run. Run folders are RUN/0, RUN/1, ...
platform submit --array 16 --time 4:00:00 -- shards build video_csv --root RAW --output DIR
    16 parts in parallel, then a job that merges them
platform submit --array 8 --time 4:00:00 --gpus-per-node 1 -- transfer MODEL --dataset D --task T --output DIR
    the cells of a transfer in 8 parts, then a job that writes the report

A run saves before its time limit (site: save_before_s) and when it is preempted, then requeues itself and continues in
the same run folder. One YAML holds what a site needs in every job (account, modules, container, ...): --site FILE, or
the variable INFLATE3D_SITE; `platform submit --print_site` shows every key. For progress: platform status RUN.
"""


def add_parser(subparsers: Any) -> None:
    """Add `platform submit`."""
    parser = subparsers.add_parser(
        "submit",
        help="run a config, a sweep, a build of shards or a transfer on a SLURM cluster",
        description="Write the sbatch script into the run's folder and submit it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="platform submit --config FILE --time H:M:S [--nodes N] [--gpus-per-node N] [options] [-- overrides]",
    )
    parser.add_argument("-c", "--config", action="append", metavar="FILE", help="a config; may be repeated")
    numbers = (
        ("nodes", 1, "machines"),
        ("gpus_per_node", 0, "GPUs per machine, one rank each; 0, the default: CPU ranks"),
        ("tasks_per_node", None, "CPU ranks per machine, without GPUs (default 1)"),
        ("cpus_per_task", None, "cores per rank; default: the site's, or data.num_workers + 1"),
    )
    for name, default, text in numbers:
        parser.add_argument(*_spellings(name), dest=name, type=int, default=default, metavar="N", help=text)
    parser.add_argument("--time", metavar="H:M:S", help="time limit of one start, in SLURM's format")
    for name in ("partition", "account", "qos", "name"):
        parser.add_argument(f"--{name}", metavar=name.upper(), help=f"the job's {name}")
    parser.add_argument("--site", metavar="FILE", help="YAML of the site's settings")
    parser.add_argument(
        "--array", metavar="FILE|N", help="a file of overrides, one task per line; for a build: the number of parts"
    )
    parser.add_argument(*_spellings("dry_run"), dest="dry_run", action="store_true", help="check, print the script")
    parser.add_argument(*_spellings("print_site"), dest="print_site", action="store_true", help="print a site's YAML")
    parser.set_defaults(run=_run, takes_overrides=True)


def _spellings(name: str) -> tuple[str, ...]:
    """sbatch writes --gpus-per-node, other options here are like --num_workers: both spellings work."""
    return tuple(dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}")))


def _run(args: argparse.Namespace) -> None:
    from inflate3d.cli.submission import builds, fits, transfers
    from inflate3d.slurm import queue
    from inflate3d.slurm.script import seconds_of

    if args.print_site:
        from inflate3d.slurm import script

        print(Path(script.__file__).with_name("site.yaml").read_text(encoding="utf-8"), end="")
        return
    words = [word for word in args.overrides if word != "--"]
    site = _site(args)
    _check_numbers(args)
    if args.time is None:
        raise InputError(
            "platform submit: --time is missing; give the time limit of one start, such as --time 12:00:00"
        )
    if seconds_of(args.time) <= site.save_before_s:
        raise InputError(
            f"--time {args.time} is not longer than save_before_s of the site, {site.save_before_s} s, "
            "so the run would be stopped as soon as it starts; give more time"
        )
    if not args.dry_run:
        queue.need_slurm()
    make = {"shards": builds, "transfer": transfers}.get(words[0] if words else "", fits)
    _submit(make(args, words), site, dry_run=args.dry_run)


def _check_numbers(args: argparse.Namespace) -> None:
    for name, least in (("nodes", 1), ("gpus_per_node", 0), ("tasks_per_node", 1), ("cpus_per_task", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"{_spellings(name)[0]} is {value}; it must be at least {least}")
    if args.gpus_per_node and args.tasks_per_node not in (None, args.gpus_per_node):
        raise InputError(
            f"--tasks-per-node is {args.tasks_per_node}, --gpus-per-node {args.gpus_per_node}: each GPU has one rank"
        )


def _site(args: argparse.Namespace) -> Site:
    """Return the site's settings: 1. the command line  2. --site  3. INFLATE3D_SITE  4. the defaults."""
    from inflate3d.document import read_document
    from inflate3d.slurm.site import Site

    values: dict[str, Any] = {}
    if named := args.site or os.environ.get("INFLATE3D_SITE"):
        path = Path(named).expanduser()
        if not path.is_file():
            raise InputError(
                f"{'--site' if args.site else 'INFLATE3D_SITE'}: no file {named!r}; "
                "platform submit --print_site > site.yaml writes one to fill in"
            )
        values = read_document(path)[0]
    given = {name: getattr(args, name) for name in ("partition", "account", "qos", "cpus_per_task")}
    checked = Site.from_dict({k: v for k, v in given.items() if v is not None}, where="platform submit")
    site = Site.from_dict(values, where=str(named or "site"))
    return replace(site, **{name: getattr(checked, name) for name, value in given.items() if value is not None})


def _submit(submission: Submission, site: Site, *, dry_run: bool) -> None:
    from inflate3d.files import write_whole
    from inflate3d.slurm import queue
    from inflate3d.slurm.record import write_job
    from inflate3d.slurm.script import render_script

    if site.cpus_per_task is None and submission.cpus_per_task:
        site = replace(site, cpus_per_task=submission.cpus_per_task)
    job = replace(submission.job, name=re.sub(r"[^\w.-]+", "-", submission.job.name) or "inflate3d")
    text = render_script(job, site, working_folder=Path.cwd())
    if dry_run:
        print(text, end="")
        return
    job.folder.mkdir(parents=True, exist_ok=True)
    for name, content in submission.files.items():
        write_whole(job.folder / name, content)
    script = job.folder / "submit.sbatch"
    write_whole(script, text)
    number = queue.submit(script)
    write_job(job, number, tasks=submission.tasks)
    logs = job.folder / (f"{number}_*.out" if job.array else f"{number}.out")
    print(f"job {number}: {script}")
    if submission.then is not None:
        after = replace(submission.then, depends_on=number)
        write_whole(
            job.folder / "then.sbatch",
            render_script(after, replace(site, sbatch=()), working_folder=Path.cwd()),
        )
        print(f"job {queue.submit(job.folder / 'then.sbatch')}, when all parts are done: {shlex.join(after.command)}")
    print(f"watch it: platform status {submission.watch}\n          tail -F {logs}\nend it:   scancel {number}")
