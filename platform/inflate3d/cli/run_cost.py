"""What a run will cost: measured on a few micro-batches as one rank trains them, in hours and device-hours."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch

from inflate3d.cli.config import Config
from inflate3d.cli.run import Run
from inflate3d.cli.table import print_table
from inflate3d.durations import duration
from inflate3d.training import DataModule
from inflate3d.training.device import DeviceDefaults
from inflate3d.training.run.step_meter import Speed, extrapolate
from inflate3d.training.run.step_times import StepTimes
from inflate3d.training.steering.first_batches import FirstBatches

_ADAM_BYTES = 16  # bytes per parameter: weight, gradient and two moments in float32


def print_run_cost(config: Config, data: DataModule, repeats: int, loading_ms: float) -> None:
    """Train `repeats` micro-batches per dataset as one rank would; print what they and the whole run cost.

    loading_ms: time in which the processes of one rank load a global micro-batch.
    """
    ranks, shares = _ranks(config), data.mixture.shares
    with tempfile.TemporaryDirectory() as folder:
        run = Run(_one_rank_of(config, data, ranks, folder, repeats))
        times = StepTimes(data.datasets, repeats)
        run.trainer.callbacks = [DeviceDefaults(), FirstBatches(), times]  # type: ignore[attr-defined]
        run.trainer.fit(run.module, datamodule=run.data)
    steps, accumulate = _max_steps(config), run.trainer.accumulate_grad_batches
    device = run.trainer.strategy.root_device
    print(
        f"\ntraining on {device}, what one rank of {ranks} does; {repeats} micro-batches per dataset after its first:"
    )
    rows = [
        (name, each.batch_size, f"{times.milliseconds(name):.1f}", f"{times.memory_gb[name]:.2f} GB")
        for name, each in run.data.datasets.items()
    ]
    print_table(("dataset", "samples per rank", "ms", "peak memory"), rows)
    _print_states(run.module, ranks)
    training_ms, loading_ms = (
        sum(share * times.milliseconds(name) for name, share in shares.items()),
        loading_ms / ranks,
    )
    seconds = accumulate * max(training_ms, loading_ms) / 1e3
    samples = accumulate * sum(share * data.datasets[name].batch_size for name, share in shares.items())
    speed = Speed(1, seconds, samples / seconds, data_wait=max(0, 1 - training_ms / loading_ms), memory_gb=0)
    cost = extrapolate(speed, steps=steps, devices=ranks)
    print(
        f"the run: {steps} steps, {cost.samples} samples at {cost.samples_per_second:.3g} per second: "
        f"{duration(3600 * cost.hours)} on {ranks} such device{'s' * (ranks > 1)}, "
        f"{cost.device_hours:.2g} device-hours, {cost.data_wait:.0%} of it waiting for data.\n"
        "Not included: validation, checkpoints, and gradient exchange between ranks."
    )


def _print_states(module: Any, ranks: int) -> None:
    """Print the memory of weights, gradients and Adam's states, and what sharding would save."""
    gigabytes = sum(p.numel() for p in module.parameters() if p.requires_grad) * _ADAM_BYTES / 1e9
    line = f"weights, gradients and Adam's states: {gigabytes:.2f} GB on every rank"
    if ranks > 1:
        line += f"; ZeRO-2 leaves {gigabytes / 4 + gigabytes * 3 / 4 / ranks:.2f} GB (docs/training.md: when it pays)"
    print(line)


def _ranks(config: Config) -> int:
    """Return the number of processes of a run of this config, with as many devices per node as this machine."""
    devices = config.get("trainer", "devices", default="auto")
    if isinstance(devices, list):
        devices = len(devices)
    if devices in ("auto", -1, "-1"):
        on_cpu = config.get("trainer", "accelerator", default="auto") == "cpu"
        devices = 1 if on_cpu else max(1, torch.cuda.device_count())
    return int(devices) * int(config.get("trainer", "num_nodes", default=1))


def _max_steps(config: Config) -> int:
    return int(config.get("trainer", "max_steps", default=-1))


def _one_rank_of(config: Config, data: DataModule, ranks: int, folder: str, repeats: int) -> Config:
    """Return the config of a run that does what one rank would, each dataset equally often, and as often as needed."""
    values = copy.deepcopy(config.values)
    for key in ("strategy", "num_nodes", "logger", "callbacks", "max_time"):
        values["trainer"].pop(key, None)
    needed = (repeats + 1) * len(data.datasets)
    values["trainer"] |= {"devices": 1, "default_root_dir": folder, "limit_val_batches": 0}
    if _max_steps(config) > 0:  # else the run is refused, as it would be
        values["trainer"]["max_steps"] = max(_max_steps(config), needed)
    values |= {"publish": None, "pictures": False, "ckpt_path": None}
    values["data"].pop("temperature", None)
    for name, each in data.datasets.items():
        values["data"]["datasets"][name] |= {"batch_size": -(-each.batch_size // ranks), "weight": 1.0}
    return Config(values, config.origins, config.files)
