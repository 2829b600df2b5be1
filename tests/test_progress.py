"""What a log shows while a run goes on: one plain line every so often, and the speed for loggers."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from inflate3d.training import with_default_callbacks
from inflate3d.training.run.loader import RunLoader
from inflate3d.training.run.progress import RunProgress
from inflate3d.training.run.step_meter import Speed, StepMeter, extrapolate
from torch.utils.data import IterableDataset


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What every clock says."""
    now = [100.0]
    for clock in ("perf_counter", "monotonic"):
        monkeypatch.setattr(time, clock, lambda: now[0])
    return now


class ToySlow(IterableDataset):
    def __init__(self, now: list[float]) -> None:
        self.now = now

    def __iter__(self) -> Any:
        for i in range(3):
            self.now[0] += 0.25
            yield i


def test_a_loader_adds_up_what_its_user_waited_and_nothing_else(now: list[float]) -> None:
    loader = RunLoader(ToySlow(now), batch_size=None)
    seen = []
    for item in loader:
        now[0] += 4  # the user's own time
        seen.append(int(item))
    assert seen == [0, 1, 2]
    assert loader.seconds_waited == 0.75


def test_a_meter_tells_of_the_stretch_since_it_was_read(now: list[float]) -> None:
    meter = StepMeter()
    meter.start(step=10, waited=3.0)
    for _ in range(4):
        meter.count(8)
    now[0] = 102.0
    first = meter.read(step=14, waited=3.5)
    assert (first.steps, first.steps_per_second, first.samples_per_second, first.data_wait) == (4, 2.0, 16.0, 0.25)
    now[0] = 104.0
    assert meter.read(step=14, waited=3.5).samples_per_second == 0


def test_a_run_costs_its_steps_at_the_measured_speed() -> None:
    speed = Speed(steps=10, seconds=20.0, samples_per_second=64.0, data_wait=0.1, memory_gb=5.0)
    cost = extrapolate(speed, steps=3600, devices=16)
    assert (cost.hours, cost.device_hours, cost.samples) == (2.0, 32.0, 460_800)


def test_without_a_terminal_a_line_comes_every_so_often(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    row = {"train/loss": 1.5, "train/organ/liver/loss": 1.0, "train/action/k400/loss": 2.0, "lr": 1e-3}
    logged: list[dict[str, float]] = []
    logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.append({**metrics, "step": step}))
    trainer: Any = SimpleNamespace(
        global_step=0,
        max_steps=100,
        world_size=2,
        log_every_n_steps=2,
        loggers=[logger],
        train_dataloader=SimpleNamespace(seconds_waited=0.0),
        fit_loop=SimpleNamespace(_should_accumulate=lambda: False),
    )
    module = SimpleNamespace(last_row=row, device=torch.device("cpu"))
    progress = RunProgress(every_seconds=5)
    progress.on_train_start(trainer, module)
    for step in range(1, 5):
        trainer.global_step = step
        now[0] += 3
        progress.on_train_batch_end(trainer, module, None, [None] * 4, step - 1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    pattern = (
        r"step 2/100  loss 1\.5  liver 1  k400 2  lr 0\.001  2\.67 samples/s  data wait 0%  "
        r"memory [\d.]+ GB  5 min left"
    )
    assert re.fullmatch(pattern, lines[0]), lines[0]
    assert [entry["step"] for entry in logged] == [2, 4]
    assert set(logged[0]) == {"speed/samples_per_second", "speed/data_wait", "speed/memory_gb", "step"}


def test_a_run_without_a_bar_can_be_asked_for(tmp_path: Path) -> None:
    callbacks = with_default_callbacks([], progress_bar=False)
    trainer = pl.Trainer(default_root_dir=tmp_path, logger=False, callbacks=callbacks, enable_progress_bar=False)
    assert trainer.progress_bar_callback is None
