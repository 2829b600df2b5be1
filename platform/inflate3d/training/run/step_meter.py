"""How fast a run goes, how long it waits for data, and how much memory it takes: for progress lines and estimates."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Speed:
    """What a stretch of training was like. data_wait: share of the time spent waiting for batches."""

    steps: int
    seconds: float
    samples_per_second: float
    data_wait: float
    memory_gb: float

    @property
    def steps_per_second(self) -> float:
        """Optimiser steps a second."""
        return self.steps / self.seconds


class StepMeter:
    """Counts samples of all ranks and this rank's waits; `read` tells of the stretch since it was read last.

    On a GPU the host runs ahead of the device, so that a wait which the device does not feel counts as well.
    """

    def __init__(self) -> None:
        self._since = (time.perf_counter(), 0, 0.0)
        self._samples = 0

    def start(self, *, step: int, waited: float) -> None:
        """Begin a stretch."""
        self._since, self._samples = (time.perf_counter(), step, waited), 0

    def count(self, samples: int) -> None:
        """Note the samples of a global micro-batch."""
        self._samples += samples

    def read(self, *, step: int, waited: float, device: torch.device | str = "cpu") -> Speed:
        """Return the speed since the last reading, and begin the next stretch."""
        seconds = max(time.perf_counter() - self._since[0], 1e-9)
        speed = Speed(
            steps=step - self._since[1],
            seconds=seconds,
            samples_per_second=self._samples / seconds,
            data_wait=min((waited - self._since[2]) / seconds, 1.0),
            memory_gb=memory_gb(device),
        )
        self.start(step=step, waited=waited)
        return speed


def memory_gb(device: torch.device | str = "cpu") -> float:
    """Return the peak of a GPU's memory that tensors took, or on the CPU what this process takes now, in 1e9 bytes."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (OSError, ValueError):  # not Linux
        return float("nan")


def peak_memory_gb(device: torch.device | str = "cpu") -> float:
    """Return the peak since the last reset_peak_memory: of a GPU's tensors, or on the CPU of this whole process."""
    if torch.device(device).type == "cuda":
        return memory_gb(device)
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            (kilobytes,) = (line.split()[1] for line in file if line.startswith("VmHWM:"))
        return int(kilobytes) * 1024 / 1e9
    except (OSError, ValueError):  # not Linux
        return float("nan")


def reset_peak_memory(device: torch.device | str = "cpu") -> None:
    """Let the peak begin at what is taken now; where a system cannot, it stays that of the whole process."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # Linux: VmHWM becomes VmRSS


@dataclass(frozen=True)
class Cost:
    """What a whole run will take, from its measured speed; validation and checkpoints are not in it."""

    hours: float
    device_hours: float
    samples: int
    samples_per_second: float
    data_wait: float
    memory_gb: float


def extrapolate(speed: Speed, *, steps: int, devices: int) -> Cost:
    """Return the cost of `steps` optimiser steps on `devices` devices at this speed."""
    seconds = steps / speed.steps_per_second
    return Cost(
        hours=seconds / 3600,
        device_hours=devices * seconds / 3600,
        samples=round(speed.samples_per_second * seconds),
        samples_per_second=speed.samples_per_second,
        data_wait=speed.data_wait,
        memory_gb=speed.memory_gb,
    )
