"""Who starts the ranks: srun, or Lightning itself; under SLURM the requeue is ours, never Lightning's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning.pytorch.plugins.environments import SLURMEnvironment

from inflate3d.errors import InputError

# Ids from here on are no step that srun started: the batch script, an interactive shell, what runs beside.
_FIRST_SPECIAL_STEP = 0xFFFF_FF00


def cluster_plugins(trainer: Mapping[str, Any]) -> list[Any]:
    """Return the trainer's plugins with the cluster environment of this process, unless the config names its own.

    1. a task of `srun`: SLURMEnvironment(auto_requeue=False)  2. elsewhere in a SLURM job (a batch script, the shell of
    `salloc`): ranks are started here, as on any machine  3. outside of SLURM: Lightning looks, as ever.
    InputError: trainer.num_nodes and trainer.devices are not what srun started.
    """
    given = trainer.get("plugins") or []
    plugins = list(given) if isinstance(given, list | tuple) else [given]
    if "SLURM_JOB_ID" not in os.environ or any(isinstance(p, ClusterEnvironment) for p in plugins):
        return plugins
    if _launched_by_torchrun():
        return plugins
    if is_srun_task():
        _check_tasks(trainer)
        return [*plugins, SLURMEnvironment(auto_requeue=False)]
    return [*plugins, LightningEnvironment()]


def is_srun_task() -> bool:
    """Whether srun started this process, not a batch script or a shell in an allocation."""
    step = os.environ.get("SLURM_STEP_ID", "")
    return step.isdigit() and int(step) < _FIRST_SPECIAL_STEP and "SLURM_PROCID" in os.environ


def _launched_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _check_tasks(trainer: Mapping[str, Any]) -> None:
    nodes, tasks = int(os.environ["SLURM_NNODES"]), int(os.environ["SLURM_NTASKS"])
    num_nodes, devices = int(trainer.get("num_nodes") or 1), _count(trainer.get("devices"))
    if nodes != num_nodes or (devices is not None and devices * nodes != tasks):
        raise InputError(
            f"srun started {tasks} tasks on {nodes} nodes, but trainer.num_nodes is {num_nodes} and trainer.devices "
            f"{trainer.get('devices')!r}; give --trainer.num_nodes {nodes} --trainer.devices {tasks // nodes}"
        )
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise InputError(f"srun started {tasks} tasks; give srun or sbatch --ntasks-per-node={tasks // nodes}")


def _count(devices: Any) -> int | None:
    """Return how many devices a trainer.devices means, or None for "auto" and -1."""
    if isinstance(devices, list | tuple):
        return len(devices)
    text = str(devices)
    if text.isdigit():
        return int(text)
    return len([d for d in text.split(",") if d.strip()]) if "," in text else None
