"""What to submit: fits, builds of shards and transfers, checked as far as possible before they wait in a queue."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from inflate3d.cli.check import check_config, shard_folder
from inflate3d.cli.config import Config, load_config
from inflate3d.data.shards.manifest import MANIFEST_FILE
from inflate3d.errors import InputError
from inflate3d.remote.address import is_remote
from inflate3d.slurm.queue import job_states
from inflate3d.slurm.record import FOLDER, read_job
from inflate3d.slurm.script import TASK, Job
from inflate3d.training.checkpoints.store import STATE, checkpoints_folder, list_checkpoints
from inflate3d.training.run.folder import CONFIG, check_same_config


@dataclass(frozen=True)
class Submission:
    """A job, the files that it reads (by name, in the job's folder), and its follow-up job.

    tasks: the run folder of each task of a sweep. watch: the argument of `platform status`.
    """

    job: Job
    watch: str
    files: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, str] = field(default_factory=dict)
    then: Job | None = None
    cpus_per_task: int | None = None


def fits(args: argparse.Namespace, overrides: list[str]) -> Submission:
    """Return one fit, or with --array FILE one per line of it. InputError for what could not run."""
    if not args.config:
        raise InputError("platform submit: no --config. Start with: platform submit --config multitask.yaml --dry-run")
    ranks = args.gpus_per_node or args.tasks_per_node or 1
    roots = _run_folder(load_config(args.config, overrides))
    _check_free(roots)
    files: dict[str, str] = {}
    tasks: dict[str, str] = {}
    if args.array is None:
        config = _config(args, overrides, ranks)
        files["config.yaml"] = _dump(config)
        path, where = roots / FOLDER / "config.yaml", roots
    else:
        for number, line in enumerate(_lines(args.array)):
            config = _config(args, [*overrides, *line], ranks, default_folder=roots / str(number))
            _check_shards(config)
            files[f"task-{number}.yaml"], tasks[str(number)] = _dump(config), str(_run_folder(config))
        path, where = roots / FOLDER / f"task-{TASK}.yaml", roots / TASK
    job = Job(
        name=args.name or roots.name,
        command=("fit", "--config", str(path)),
        run=str(where),
        folder=roots / FOLDER,
        time=args.time,
        nodes=args.nodes,
        tasks_per_node=ranks,
        gpus_per_node=args.gpus_per_node,
        array=f"0-{len(tasks) - 1}" if tasks else None,
        wandb="WandbLogger" in str(config.get("trainer", "logger")),
    )
    workers = config.get("data", "num_workers", default=0)
    return Submission(job, str(roots), files, tasks, cpus_per_task=int(workers) + 1)


def builds(args: argparse.Namespace, words: list[str]) -> Submission:
    """Return `shards build` in --array N parts, and the merge that follows; without --array one build."""
    if words[1:2] != ["build"]:
        raise InputError(f"platform submit: `{shlex.join(words[:2])}` is not a job; submit: shards build NAME ...")
    if args.config or args.nodes != 1 or args.gpus_per_node:
        raise InputError(
            "platform submit: a build of shards does not take --config, --nodes or --gpus-per-node; use --array"
        )
    if "--part" in words:
        raise InputError("platform submit: --part is what --array N gives to each task; leave it out")
    output = Path(_value(words, "--output")).expanduser().resolve()
    if (output / "manifest.json").is_file():
        raise InputError(f"--output {output} already holds shards; give an empty folder")
    folder = output.parent / f"{output.name}.slurm"
    parts = _parts(args.array, "a build of shards")
    job = Job(
        name=args.name or f"build-{output.name}",
        command=(*words, "--part", f"{TASK}/{parts}") if parts else tuple(words),
        folder=folder,
        time=args.time,
        array=f"1-{parts}" if parts else None,
    )
    merge = ["shards", "merge", str(output)]
    if any(word.partition("=")[0] == "--max_rejects" for word in words):
        merge += ["--max_rejects", _value(words, "--max_rejects")]
    then = Job(name=f"merge-{output.name}", command=tuple(merge), folder=folder, time=args.time)
    return Submission(job, str(folder), then=then if parts else None)


def transfers(args: argparse.Namespace, words: list[str]) -> Submission:
    """Return a transfer, with --array N its cells in N parts and then the report."""
    if args.config or args.nodes != 1:
        raise InputError("platform submit: a transfer does not take --config or --nodes; use --array")
    if "--part" in words:
        raise InputError("platform submit: --part is what --array N gives to each task; leave it out")
    output = Path(_value(words, "--output")).expanduser().resolve()
    words = [*words, "--device", "cuda"] if args.gpus_per_node and "--device" not in words else words
    parts = _parts(args.array, "a transfer")
    job = Job(
        name=args.name or f"transfer-{output.name}",
        command=(*words, "--part", f"{TASK}/{parts}") if parts else tuple(words),
        folder=output.parent / f"{output.name}.slurm",
        time=args.time,
        gpus_per_node=args.gpus_per_node,
        array=f"1-{parts}" if parts else None,
    )
    then = Job(name=f"report-{output.name}", command=tuple(words), folder=job.folder, time=args.time)
    return Submission(job, str(job.folder), then=then if parts else None)


def _parts(array: str | None, what: str) -> int | None:
    """Return the number of parts given by --array. InputError if it is not a number."""
    if array is None:
        return None
    if not array.isdigit() or int(array) < 1:
        raise InputError(f"--array is {array!r}; for {what} give the number of parts")
    return int(array)


def _config(args: argparse.Namespace, overrides: list[str], ranks: int, default_folder: Path | None = None) -> Config:
    """Return the checked config of one fit, with the number of ranks written into it."""
    config = load_config(args.config, overrides)
    trainer = config.values.setdefault("trainer", {})
    for key, option in (("num_nodes", "--nodes"), ("devices", "--gpus-per-node")):
        if config.origins.get(("trainer", key), "").startswith("--"):
            raise InputError(f"--trainer.{key}: give {option} instead, which tells SLURM as well")
    if default_folder:
        trainer["default_root_dir"] = str(default_folder)
    _check_accelerator(config, args.gpus_per_node)
    trainer.update(num_nodes=args.nodes, devices=ranks)
    if not args.gpus_per_node:
        trainer["accelerator"] = "cpu"
    check_config(config)
    _check_ranks(config, args.nodes * ranks)
    _check_run(config, args.nodes * ranks)
    return config


def _check_accelerator(config: Config, gpus: int) -> None:
    accelerator = str(config.get("trainer", "accelerator", default="auto"))
    if gpus and accelerator == "cpu":
        raise InputError(
            f"{config.where('trainer', 'accelerator')} is cpu, but --gpus-per-node is {gpus}; remove one of them"
        )
    if not gpus and accelerator in ("gpu", "cuda"):
        raise InputError(f"{config.where('trainer', 'accelerator')} is {accelerator}: give --gpus-per-node N")


def _check_ranks(config: Config, ranks: int) -> None:
    for name, dataset in config.get("data", "datasets").items():
        if dataset["batch_size"] % ranks:
            raise InputError(
                f"{config.where('data', 'datasets', name, 'batch_size')} is {dataset['batch_size']}, the micro-batch "
                f"of all ranks; {ranks} ranks cannot share it evenly. Make it a multiple of {ranks}"
            )


def _check_shards(config: Config) -> None:
    """Refuse a sweep whose tasks would all build the same shards at once."""
    if is_remote(config.get("data", "root")):
        return
    for name in config.get("data", "datasets"):
        folder = shard_folder(config, name)
        if not (Path(folder) / MANIFEST_FILE).is_file():
            raise InputError(
                f"{config.where('data', 'datasets', name)}: no shards in {folder} yet, and every task of the sweep "
                "would build them at once; build them first: platform shards build, or submit one fit"
            )


def _check_run(config: Config, ranks: int) -> None:
    """Refuse what the job would refuse at its start, if the run folder already holds a run."""
    run = _run_folder(config)
    if not (run / CONFIG).is_file():
        return
    from inflate3d.cli.run import with_defaults  # torch: only where a run continues

    whole = with_defaults(config.values)
    checkpoints = list_checkpoints(checkpoints_folder(run))
    if not checkpoints:
        return
    if whole["ckpt_path"] is None:
        raise InputError(
            f"{run} already holds a run; continue it: --ckpt_path last, or start another: "
            "--trainer.default_root_dir ANOTHER_FOLDER"
        )
    check_same_config(run, whole, complete=with_defaults)
    last, steps = checkpoints[-1], whole["trainer"]["max_steps"]
    if last.step >= steps:
        raise InputError(
            f"{run}: this run has finished, {last.step} of {steps} steps; to train longer: --trainer.max_steps N"
        )
    before = zero_ranks(last.path / STATE)
    if before and before != ranks:
        raise InputError(
            f"{last.path}: its DeepSpeed state is in {before} pieces, one per rank, and {ranks} ranks cannot read it; "
            f"submit with {before} ranks, or use inflate3d.training.DeepSpeed, whose checkpoints fit any number"
        )


def zero_ranks(state: Path) -> int:
    """Return how many ranks wrote DeepSpeed's own sharded format; 0 for a universal state or none."""
    if not state.is_dir() or any(state.glob("*universal*")) or any(state.glob("*/zero")):
        return 0
    names = [re.search(r"zero_pp_rank_(\d+)_mp_rank_\d+_optim_states\.pt$", path.name) for path in state.rglob("*.pt")]
    return len({found[1] for found in names if found})


def _check_free(run: Path) -> None:
    """Refuse a second job that would write into the same folder."""
    record = read_job(run)
    alive = [state for state in (job_states(record.id) if record else []) if state.is_alive]
    if alive:
        raise InputError(
            f"{run}: job {alive[0].id} is {alive[0].state} and writes to it; watch it: platform status {run}, "
            f"or end it first: scancel {record.id if record else alive[0].id}"
        )


def _lines(name: str) -> list[list[str]]:
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"--array: no file {name!r}; for a fit give a file with one line of overrides for each task")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}") from None
        if any(word.partition("=")[0] == "--trainer.default_root_dir" for word in words):
            raise InputError(
                f"{path}:{number}: each task has its own run folder, RUN/0, RUN/1, ...; leave the option out"
            )
        if words:
            found.append(words)
    if not found:
        raise InputError(f"--array: {path} has no lines; write one task per line, such as: --model.optimizer.lr 1e-3")
    return found


def _run_folder(config: Config) -> Path:
    root = config.get("trainer", "default_root_dir")
    if not isinstance(root, str):
        raise InputError(
            "trainer.default_root_dir is missing; give the run's folder: --trainer.default_root_dir runs/NAME"
        )
    return Path(root).expanduser().resolve()


def _dump(config: Config) -> str:
    head = f"# What `platform submit` read from {', '.join(str(path) for path in config.files)} and the command line.\n"
    return head + yaml.safe_dump(config.values, sort_keys=False)


def _value(words: list[str], option: str) -> str:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == option and following:
            return following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    command = " ".join(words[: 2 if words[0] == "shards" else 1])
    raise InputError(f"platform submit: `{command}` needs {option}")
