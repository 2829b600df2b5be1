"""A signal stops a run after a whole optimiser step; started again, it ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.models import BackboneConfig
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import (
    CheckpointWriter,
    DataModule,
    MultiTaskModule,
    find_checkpoint,
    trainer_defaults,
    with_default_callbacks,
)
from inflate3d.training.run.folder import read_state
from inflate3d.training.run.metrics_csv import read_metrics
from inflate3d.training.steering import stop_signals
from inflate3d.training.steering.stop import Agreement
from inflate3d.training.steering.wandb_service import outlive_service
from nightly import nightly_but, slow_but
from states import assert_equal_state
from warm_process import PLATFORM, WarmProcess

PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "DataModule", "train_means")
WORKER = """
import os, signal, sys, time
from inflate3d.training.steering.stop_signals import shield_worker
from multiprocessing import get_context

def work():
    shield_worker()
    print("ready", os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    process = get_context("fork").Process(target=work)
    process.start()
    sys.stdin.readline()
    print("alive" if process.is_alive() else "dead", flush=True)
    process.terminate()
    process.join(10)
    print("code", process.exitcode, flush=True)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    build_shards(Toy(kind="volume_classification", num_train=7, num_val=6, size=16), root / "shapes", progress=False)
    return root


class ToySignal(pl.Callback):
    """Sends this process a signal at one moment."""

    def __init__(self, moment: str, at: int, signum: signal.Signals = signal.SIGUSR1) -> None:
        self.moment, self.at, self.signum, self.sent, self.validated = moment, at, signum, False, 0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if self.moment == "batch" and batch.micro_batch == self.at:
            self._send()

    def on_validation_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        self.validated += 1
        if self.moment == "validation" and trainer.global_step == self.at:
            self._send()

    def _send(self) -> None:
        if not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.signum)


def fit(shards: Path, run: Path, *callbacks: pl.Callback, resume: bool = False) -> dict[str, Any]:
    """Fit 6 steps of 2 micro-batches, validated every 2 steps; return what the last checkpoint holds."""
    torch.set_num_threads(1)
    module = MultiTaskModule(
        BackboneConfig(name="test_resnet", stems={"mask": 1}, drop_path_rate=0.1),
        {"shape": VolumeClassification(datasets=["shapes"], dropout=0.2)},
        lambda p: torch.optim.AdamW(p, lr=1e-3),
    )
    data = DataModule(str(shards), {"shapes": {"batch_size": 2}}, seed=0)
    options = {"accelerator": "cpu", "devices": 1, "max_steps": 6, "accumulate_grad_batches": 2}
    options |= {"val_check_interval": 4, "log_every_n_steps": 1, "default_root_dir": str(run)}
    trainer = pl.Trainer(
        **{**trainer_defaults(), **options},
        callbacks=with_default_callbacks([CheckpointWriter(keep_last=9), *callbacks]),
    )
    found = find_checkpoint(run) if resume else None
    trainer.fit(module, datamodule=data, ckpt_path=found and str(found.state))
    last = find_checkpoint(run)
    assert last
    return torch.load(last.state, weights_only=True)


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    run = tmp_path_factory.mktemp("whole")
    return fit(shards, run), run


@pytest.mark.parametrize(
    ("moment", "at", "signum", "step"),
    slow_but(
        [
            ("batch", 4, signal.SIGTERM, 3),  # the first half of a window: the step is finished, then saved
            ("batch", 7, signal.SIGINT, 4),  # a validation is due after this step
            ("validation", 4, signal.SIGUSR1, 4),  # within a validation
        ],
        0,
    ),
)
def test_a_signal_costs_nothing_wherever_it_comes(
    shards: Path,
    whole: tuple[dict[str, Any], Path],
    tmp_path: Path,
    moment: str,
    at: int,
    signum: signal.Signals,
    step: int,
) -> None:
    before = signal.getsignal(signum)
    toy = ToySignal(moment, at, signum)
    with pytest.raises(stop_signals.RunStopped) as stopped:
        fit(shards, tmp_path, toy)
    assert stopped.value.code == (130 if signum is signal.SIGINT else 75)
    assert toy.validated in (3, 4)  # the first validation has 3 batches; no more than one of the next
    assert signal.getsignal(signum) == before
    found, state = find_checkpoint(tmp_path), read_state(tmp_path)
    assert found
    assert found.step == step
    assert state
    assert (state["phase"], state["step"], state["max_steps"]) == ("stopped", step, 6)

    resumed = fit(shards, tmp_path, resume=True)
    assert_equal_state({k: whole[0][k] for k in PARTS}, {k: resumed[k] for k in PARTS})
    assert (tmp_path / "metrics.csv").read_bytes() == (whole[1] / "metrics.csv").read_bytes()
    scores = [[(c["step"], c["score"]) for c in completes(run)] for run in (tmp_path, whole[1])]
    assert scores[0][-2:] == scores[1][-2:]


def completes(run: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(run.glob("checkpoints/*/complete.json"))]


@pytest.mark.slow
def test_at_the_last_step_a_signal_changes_nothing(
    shards: Path, whole: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    ended = fit(shards, tmp_path, ToySignal("validation", 6))
    assert_equal_state(whole[0]["state_dict"], ended["state_dict"])
    assert (tmp_path / "metrics.csv").read_bytes() == (whole[1] / "metrics.csv").read_bytes()
    state = read_state(tmp_path)
    assert state
    assert state["phase"] == "finished"
    assert 0 <= state["data_wait"] <= 1
    assert state["steps_per_s"] > 0


def test_a_loading_worker_outlives_a_stray_sigterm_but_not_its_parents(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    process = subprocess.Popen(
        [sys.executable, "worker.py"], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    worker = int(process.stdout.readline().split()[1])
    for signum in stop_signals.SIGNALS:
        os.kill(worker, signum)
    time.sleep(0.3)
    rest, _ = process.communicate("\n", timeout=30)
    assert rest.split() == ["alive", "code", "0"]


def test_a_second_ctrl_c_ends_the_process_at_once_and_before_training_the_first_does(
    capfd: pytest.CaptureFixture[str],
) -> None:
    handlers = stop_signals.listen()
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        stop_signals.set_training(True)
        signal.raise_signal(signal.SIGINT)
        assert stop_signals.received() is signal.SIGINT
        assert "saved after this step; once more ends it at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        stop_signals.set_training(False)
        stop_signals.restore(handlers)


def test_of_several_ranks_only_the_first_says_that_the_run_has_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # srun ends the other ranks by SIGTERM where one fails: they must not pass for a run that wants to go on.
    monkeypatch.setenv("INFLATE3D_STOPPED_FILE", str(tmp_path / "stopped"))
    for rank, code in (("1", 0), ("0", stop_signals.EXIT_STOPPED)):
        monkeypatch.setenv("SLURM_PROCID", rank)
        handlers = stop_signals.listen()
        try:
            with pytest.raises(stop_signals.RunStopped) as stopped:
                os.kill(os.getpid(), signal.SIGTERM)
        finally:
            stop_signals.restore(handlers)
            stop_signals.set_training(False)
        assert stopped.value.code == code
        assert (tmp_path / "stopped").exists() == (rank == "0")


def test_a_signal_after_an_error_does_not_make_the_failed_run_look_stopped(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ToyFailure(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            raise ValueError("a step fails")

    monkeypatch.setenv("INFLATE3D_STOPPED_FILE", str(tmp_path / "stopped"))
    handlers = stop_signals.listen()  # as the command does
    try:
        with pytest.raises(ValueError, match="a step fails"):
            fit(shards, tmp_path / "run", ToyFailure())
        os.kill(os.getpid(), signal.SIGTERM)  # srun's, to what is left of a failed step
        time.sleep(0.1)
        assert not (tmp_path / "stopped").exists()
        assert (read_state(tmp_path / "run") or {})["phase"] == "failed"
        stop_signals.listen()
        with pytest.raises(stop_signals.RunStopped):
            signal.raise_signal(signal.SIGTERM)
    finally:
        stop_signals.set_training(False)  # forgets the signal
        stop_signals.restore(handlers)


class ToyRun:
    """A W&B run whose service is gone."""

    def log(self, row: dict[str, float]) -> None:
        raise ConnectionResetError("Connection lost")


def test_a_lost_wandb_service_stops_a_run_only_where_no_signal_explains_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run: Any = ToyRun()
    outlive_service(run)
    with pytest.raises(ConnectionResetError):
        run.log({"loss": 1.0})
    monkeypatch.setattr(stop_signals._State, "received", signal.SIGTERM)
    run.log({"loss": 2.0})
    run.log({"loss": 3.0})
    assert caplog.text.count("its last rows stand in metrics.csv only") == 1


@pytest.mark.slow
def test_before_training_a_signal_ends_the_command_at_once_with_75(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from inflate3d.cli.main import main\n"
        "import inflate3d.cli.run as run\n"
        "class ToyRun:\n"
        "    def __init__(self, config): os.kill(os.getpid(), signal.SIGTERM)\n"
        "run.Run = ToyRun\n"
        "sys.exit(main(['fit', '--config', 'quickstart.yaml']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == stop_signals.EXIT_STOPPED, done.stderr
    assert "Traceback" not in done.stderr


TWO_RANKS = """
seed_everything: 3
trainer:
  {default_root_dir: run, accelerator: cpu, devices: 2, strategy: ddp, max_steps: 6, val_check_interval: 3,
   callbacks: [{class_path: toy_signal.ToySignal}]}
model:
  backbone: {name: test_resnet, stems: {mask: 1}}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}
  tasks: {shape: {class_path: VolumeClassification, init_args: {datasets: [shapes]}}}
data:
  root: shards
  datasets:
    shapes:
      batch_size: 4
      build: {class_path: Toy, init_args: {kind: volume_classification, num_train: 7, num_val: 5}}
"""
# One rank alone is signalled, at a micro-batch or within a validation.
SIGNAL = """
import os, signal
import lightning.pytorch as pl

class ToySignal(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if os.environ.get("WHERE") == "batch" and batch.micro_batch == 3 and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if os.environ.get("WHERE") == "validation" and trainer.global_step == 3 and trainer.global_rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("where", "step"), nightly_but([("batch", 4), ("validation", 3)], 1))
def test_all_ranks_stop_at_the_same_step_when_one_is_signalled(tmp_path: Path, where: str, step: int) -> None:
    (tmp_path / "tiny.yaml").write_text(TWO_RANKS)
    (tmp_path / "toy_signal.py").write_text(SIGNAL)
    command = ["fit", "--config", "tiny.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1", "WHERE": where}
    environment["INFLATE3D_STOPPED_FILE"] = str(tmp_path / "stopped")
    first = WarmProcess(PLATFORM, *command, cwd=tmp_path, env=environment).done()
    assert first.returncode == stop_signals.EXIT_STOPPED, first.stdout + first.stderr
    assert (tmp_path / "stopped").exists()
    found = find_checkpoint(tmp_path / "run")
    assert found
    assert found.step == step
    environment["WHERE"] = ""
    second = WarmProcess(PLATFORM, *command, cwd=tmp_path, env=environment).done()
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"going on from step {step}" in second.stdout
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [row["step"] for row in rows if "val/score" in row] == [3, 6]


@pytest.mark.gpu
def test_on_a_gpu_an_answer_comes_one_question_later() -> None:
    agreement, device = Agreement(), torch.device("cuda")
    answers = []
    for wanted in (False, True, False, False):
        agreement.ask(wanted, device)
        answers.append(agreement.answer())
    assert answers == [False, False, True, False]
