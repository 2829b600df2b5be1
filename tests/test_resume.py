"""A run that is killed and started again by the same command ends bit for bit where a run never killed ends."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from inflate3d.cli.config import packaged_configs
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.models import BackboneConfig
from inflate3d.tasks.medical_segmentation import MedicalSegmentation
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import (
    CheckpointWriter,
    DataModule,
    MultiTaskModule,
    find_checkpoint,
    trainer_defaults,
    with_default_callbacks,
)
from inflate3d.training.checkpoints.store import list_checkpoints
from inflate3d.training.run.folder import read_run_config, write_config
from inflate3d.training.run.lock import one_writer
from inflate3d.training.run.metrics_csv import read_metrics
from nightly import slow_but
from states import assert_equal_state
from warm_process import PLATFORM, WarmProcess

CONFIG = """
seed_everything: 3
ckpt_path: last
trainer:
  default_root_dir: run
  accelerator: cpu
  devices: 1
  max_steps: 10
  accumulate_grad_batches: 3
  val_check_interval: 12
  log_every_n_steps: 3
  callbacks:
    - {class_path: inflate3d.training.CheckpointWriter, init_args: {every_steps: 2}}
    - {class_path: toy_killer.ToyKiller}
model:
  backbone: {name: test_resnet, stems: {rgb: 3, ct: 1, mask: 1}, drop_path_rate: 0.1}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}
  warmup_steps: 2
  tasks:
    organ: {class_path: MedicalSegmentation, init_args: {datasets: [seg]}}
    shape: {class_path: VolumeClassification, init_args: {datasets: [shapes], dropout: 0.2}}
    motion: {class_path: VideoAction, init_args: {datasets: [clips]}}
data:
  root: shards
  datasets:
    seg:
      batch_size: 2
      sample: {patch_size: [8, 16, 16]}
      augment: [{class_path: RandomFlip, init_args: {axes: [Left]}}, {class_path: RandomNoise}]
      build: {class_path: Toy, init_args: {kind: volume_segmentation, num_train: 5, num_val: 2, size: 16}}
    shapes:
      batch_size: 4
      build: {class_path: Toy, init_args: {kind: volume_classification, num_train: 7, num_val: 2, size: 16}}
    clips:
      batch_size: 2
      sample: {num_frames: 4, crop_size: 32}
      build:
        class_path: Toy
        init_args: {kind: video_classification, num_train: 5, num_val: 2, size: 32, num_frames: 8}
"""

# Notes the keys of every micro-batch, and kills its own process where the variable KILL says.
KILLER = """
import os, signal, threading
import lightning.pytorch as pl
import torch

MOMENT, _, WHERE = os.environ.get("KILL", "").partition(":")
WRITTEN = 0.5  # share of a checkpoint's file that is on the disk when its writer is killed

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def save_half(state, path):
    torch_save(state, path)
    with open(path, "r+b") as file:
        file.truncate(int(os.path.getsize(path) * WRITTEN))
    die()

torch_save = torch.save

class ToyKiller(pl.Callback):
    def on_train_start(self, trainer, module):
        global WRITTEN
        if MOMENT == "after":  # so many seconds, wherever that is
            threading.Timer(float(WHERE), die).start()
        if MOMENT == "next save":
            WRITTEN = float(WHERE)
            torch.save = save_half

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        with open(f"keys{trainer.global_rank}.txt", "a") as file:
            file.write(f"{batch.micro_batch} {batch.dataset} {' '.join(batch.keys)}\\n")
        if MOMENT == "batch" and batch.micro_batch == int(WHERE):
            die()
        if MOMENT == "saving" and trainer.global_step == int(WHERE) - 1:
            torch.save = save_half

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if MOMENT == "validation" and trainer.global_step == int(WHERE):
            die()
"""


def killer_environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}


def fit(
    folder: Path, *options: str, kill: str = "", cold: bool = False, config: str = CONFIG
) -> subprocess.CompletedProcess:
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(config)
    (folder / "toy_killer.py").write_text(KILLER)
    command = ["fit", "--config", "tiny.yaml", *options]
    environment = killer_environment(folder) | {"KILL": kill}
    if cold:
        command = [sys.executable, "-m", "inflate3d.cli.main", *command]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    else:
        done = WarmProcess(PLATFORM, *command, cwd=folder, env=environment).done(timeout_s=1500)
    assert done.returncode == (-signal.SIGKILL if kill else 0), done.stdout + done.stderr
    return done


# Imports once, then runs `fit` in a child of its own for every entry of KILL that it is given, until one ends alive.
FORKS = """
import json, os, sys
import toy_imports
from inflate3d.cli.main import main

folder, kills, options = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
os.chdir(folder)
for kill in kills:
    child = os.fork()
    if child == 0:
        os.environ["KILL"] = kill
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        sys.argv = ["platform", "fit", "--config", "tiny.yaml", *options]
        try:
            main()
        except SystemExit as end:
            os._exit(end.code or 0)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    written = sorted(os.listdir("run/checkpoints")) if os.path.isdir("run/checkpoints") else []
    print(f"{kill or 'no kill'}: exit {status}, then {written}", flush=True)
    if status == 0:
        break
"""


def fit_in_forks(folder: Path, kills: list[str], *options: str) -> list[str]:
    """Run and kill, one after the other; return a line for each start."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(CONFIG.replace("every_steps: 2", "every_steps: 1"))
    (folder / "toy_killer.py").write_text(KILLER)
    (folder / "toy_imports.py").write_text(
        "import inflate3d.cli.run, inflate3d.tasks, inflate3d.datasets, timm, torchio"
    )
    (folder / "forks.py").write_text(FORKS)
    command = [sys.executable, "forks.py", str(folder), json.dumps(kills), *options]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=1500)
    log = folder / "log.txt"
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text()[-3000:] if log.is_file() else "")
    return done.stdout.splitlines()


def keys_seen(folder: Path, rank: int = 0) -> dict[int, str]:
    """Keys by micro-batch; one that ran twice must have held the same both times."""
    seen: dict[int, str] = {}
    for line in (folder / f"keys{rank}.txt").read_text().splitlines():
        index, _, keys = line.partition(" ")
        assert seen.setdefault(int(index), keys) == keys
    return seen


# -------------------------------------------------------------------------- in one process: other windows, more steps


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    for name, kind in (("seg", "volume_segmentation"), ("shapes", "volume_classification")):
        build_shards(Toy(kind=kind, num_train=5, num_val=2, size=16), root / name, progress=False)
    return root


class ToyCrash(pl.Callback):
    """Raises before one micro-batch."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch.micro_batch == self.at:
            raise KeyError("crash")


def fit_here(shards: Path, run: Path, *, crash: int = -1, resume: bool = False, **options) -> dict:
    """Fit two toy tasks in this process; return the state that the last checkpoint holds."""
    torch.set_num_threads(1)
    tasks = {
        "organ": MedicalSegmentation(datasets=["seg"], decoder_channels=[4, 4, 8, 8, 8]),
        "shape": VolumeClassification(datasets=["shapes"], dropout=0.2),
    }
    backbone = BackboneConfig(name="test_resnet", stems={"ct": 1, "mask": 1}, drop_path_rate=0.1)
    module = MultiTaskModule(backbone, tasks, lambda p: torch.optim.AdamW(p, lr=1e-3), warmup_steps=1)
    datasets = {"seg": {"batch_size": 2, "sample": {"patch_size": [8, 16, 16]}}, "shapes": {"batch_size": 2}}
    callbacks = with_default_callbacks([CheckpointWriter(every_steps=2, keep_last=9), ToyCrash(crash)])
    settings = {**trainer_defaults(), "accelerator": "cpu", "devices": 1, "max_steps": 6, "log_every_n_steps": 2}
    trainer = pl.Trainer(**{**settings, "default_root_dir": str(run), "callbacks": callbacks, **options})
    found = find_checkpoint(run) if resume else None
    trainer.fit(module, datamodule=DataModule(str(shards), datasets, seed=0), ckpt_path=found and str(found.state))
    return torch.load(find_checkpoint(run).state, weights_only=True)


@pytest.mark.parametrize(("window", "interval", "crash"), slow_but([(2, 4, 7), (1, 3, 5), (2, 4, 8), (2, 6, 9)], 0))
def test_a_crash_costs_nothing_whatever_the_accumulation_window(shards, tmp_path, window, interval, crash):
    options = {"accumulate_grad_batches": window, "val_check_interval": interval}
    whole = fit_here(shards, tmp_path / "whole", **options)
    with pytest.raises(KeyError, match="crash"):
        fit_here(shards, tmp_path / "crashed", crash=crash, **options)
    assert 0 < find_checkpoint(tmp_path / "crashed").step < 6
    resumed = fit_here(shards, tmp_path / "crashed", resume=True, **options)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "DataModule", "train_means"):
        assert_equal_state(whole[part], resumed[part])
    assert (tmp_path / "whole/metrics.csv").read_bytes() == (tmp_path / "crashed/metrics.csv").read_bytes()


@pytest.mark.slow
def test_a_finished_run_goes_on_when_it_is_given_more_steps(shards, tmp_path):
    first = fit_here(shards, tmp_path, max_steps=3, val_check_interval=2)
    more = fit_here(shards, tmp_path, resume=True, max_steps=5, val_check_interval=2)
    assert (first["global_step"], more["global_step"]) == (3, 5)
    assert more["DataModule"]["consumed"] == 5
    steps = [row["step"] for row in read_metrics(tmp_path / "metrics.csv") if "val/score" in row]
    assert steps == [2, 3, 4, 5]


@pytest.mark.slow
def test_without_validation_data_checkpoints_are_written_all_the_same(shards, tmp_path):
    fit_here(shards, tmp_path, limit_val_batches=0)
    assert [c.step for c in list_checkpoints(tmp_path / "checkpoints")] == [2, 4, 6]


@pytest.mark.slow
def test_changed_shards_are_refused_on_resume(shards, tmp_path):
    fit_here(shards, tmp_path / "run", max_steps=2)
    other = tmp_path / "other"
    for name, kind in (("seg", "volume_segmentation"), ("shapes", "volume_classification")):
        build_shards(Toy(kind=kind, num_train=6, num_val=2, size=16), other / name, progress=False)
    with pytest.raises(InputError, match="its data changed: shards of seg"):
        fit_here(other, tmp_path / "run", resume=True)


# ------------------------------------------------------------------------------------ kill -9, by the real command


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("never_killed")
    fit(folder, cold=True)  # with a hash seed of its own
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_at_any_moment_a_run_ends_bit_for_bit_the_same(never_killed, tmp_path, num_workers):
    # 5 + 7 + 5 samples in micro-batches of 2, 4, 2: every moment lies inside an epoch of each dataset.
    folder, workers = tmp_path / "killed", f"--data.num_workers={num_workers}"
    fit(folder, workers, kill="batch:10")  # in the middle of an accumulation window, after step 3
    assert find_checkpoint(folder / "run").step == 2
    fit(folder, workers, kill="validation:4")  # before the checkpoint of step 4, which waits for its score
    assert find_checkpoint(folder / "run").step == 2
    fit(folder, workers, kill="saving:6")  # while a checkpoint is being written
    assert find_checkpoint(folder / "run").step == 4
    assert list((folder / "run" / "checkpoints").glob(".tmp-*"))
    finished = fit(folder, workers)

    assert "going on from step 4" in finished.stdout
    assert sorted(keys_seen(folder)) == list(range(30))
    assert_ends_as(folder, never_killed, step=10)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.data
@pytest.mark.timeout(3100)
def test_the_library_killed_in_the_middle_ends_bit_for_bit_the_same(shared_data, tmp_path):
    # STEPS=100 .venv/bin/pytest tests/test_resume.py -m nightly -k library   is what docs/LOG.md reports.
    steps = int(os.environ.get("STEPS", "4"))
    config = packaged_configs()["library.yaml"].read_text(encoding="utf-8").replace("../shared/data", str(shared_data))
    config = config.replace("  callbacks:\n", "  callbacks:\n    - {class_path: toy_killer.ToyKiller}\n")
    config = config.replace("every_steps: 20", f"every_steps: {max(1, steps // 5)}")
    options = {
        "trainer.default_root_dir": "run",
        "trainer.max_steps": steps,
        "trainer.val_check_interval": 5 * steps,
        "trainer.limit_val_batches": 2,
        "trainer.log_every_n_steps": 1,
        "data.root": tmp_path / "shards",
        "data.datasets.scenes.build.init_args.num_train": 60,
        "pictures": False,
    }
    given = [f"--{key}={value}" for key, value in options.items()]
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    fit(whole, *given, config=config)
    fit(folder, *given, config=config, kill=f"batch:{5 * steps // 2 + 2}")
    assert 0 < find_checkpoint(folder / "run").step < steps
    fit(folder, *given, config=config)
    assert {line.split()[0] for line in keys_seen(folder).values()} == {
        *("hippocampus", "nodules", "adrenal", "modelnet10", "arid", "scenes")
    }
    assert_ends_as(folder, whole, step=steps)


def assert_ends_as(folder: Path, undisturbed: Path, *, step: int) -> None:
    """Two runs saw the same keys, and ended with the same weights, states and rows."""
    assert keys_seen(folder) == keys_seen(undisturbed)
    ours, theirs = find_checkpoint(folder / "run"), find_checkpoint(undisturbed / "run")
    assert (ours.step, ours.score, ours.metrics) == (step, theirs.score, theirs.metrics)
    one, other = torch.load(ours.state, weights_only=True), torch.load(theirs.state, weights_only=True)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "DataModule", "train_means"):
        assert_equal_state(one[part], other[part])
    assert (folder / "run/metrics.csv").read_bytes() == (undisturbed / "run/metrics.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(3100)
def test_kills_at_random_moments_cost_nothing(tmp_path):
    # KILLS=20 .venv/bin/pytest tests/test_resume.py -k random   is what docs/LOG.md reports.
    kills, chance = int(os.environ.get("KILLS", "3")), random.Random(5)
    steps = 2 * kills + 6
    options = [f"--trainer.max_steps={steps}", "--trainer.val_check_interval=15", "--trainer.limit_val_batches=1"]
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    assert fit_in_forks(whole, [""], *options)[-1].startswith("no kill: exit 0")
    moments = [
        f"next save:{chance.random()}" if i % 3 == 2 else f"after:{chance.uniform(0, 2.0)}" for i in range(kills)
    ]
    starts = fit_in_forks(folder, [*moments, ""], *options)
    print("\n".join(starts))
    assert len(starts) == kills + 1
    assert all(f"exit {-signal.SIGKILL}," in line for line in starts[:-1])
    assert starts[-1].startswith("no kill: exit 0")
    assert_ends_as(folder, whole, step=steps)


@pytest.mark.slow
def test_two_ranks_train_validate_and_go_on(tmp_path):
    # Two validation samples in batches of four: the second rank sees none of them.
    options = [f"--data.datasets.{name}.batch_size=4" for name in ("seg", "clips")]
    options += ["--trainer.devices=2", "--trainer.strategy=ddp"]
    fit(tmp_path / "ddp", *options, "--trainer.max_steps=2")
    done = fit(tmp_path / "ddp", *options, "--trainer.max_steps=3")
    assert "going on from step 2" in done.stdout
    assert (done.stdout + done.stderr).count("; plan auto: ") == 1  # told once, not by every rank
    ours, theirs = keys_seen(tmp_path / "ddp"), keys_seen(tmp_path / "ddp", rank=1)
    assert sorted(ours) == sorted(theirs) == list(range(9))
    for one, other in zip(ours.values(), theirs.values(), strict=True):
        assert one.split()[0] == other.split()[0]  # the same dataset
        assert len(one.split()) == len(other.split()) == 3  # and half of its micro-batch of four
    rows = read_metrics(tmp_path / "ddp/run/metrics.csv")
    assert [r["step"] for r in rows if "val/score" in r] == [2, 3]


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(never_killed):
    before = find_checkpoint(never_killed / "run").state.read_bytes()
    again = fit(never_killed)
    assert "finished" in again.stdout
    environment = killer_environment(never_killed)
    with one_writer(never_killed / "run"):
        refused = WarmProcess(PLATFORM, "fit", "--config", "tiny.yaml", cwd=never_killed, env=environment).done()
        status = WarmProcess(PLATFORM, "status", "run", cwd=never_killed).done()
    assert (refused.returncode, status.returncode) == (2, 0)
    assert f"another start of this run is writing there: process {os.getpid()} on host" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert find_checkpoint(never_killed / "run").state.read_bytes() == before


@pytest.mark.slow
def test_a_run_goes_on_that_began_before_there_was_an_argument(never_killed, tmp_path):
    folder = Path(shutil.copytree(never_killed, tmp_path / "older"))
    config = read_run_config(folder / "run")
    assert config["model"].pop("final_lr_fraction") == 0
    assert config["model"]["tasks"]["organ"]["init_args"].pop("shared") is False
    write_config(folder / "run", config)
    other = ["fit", "--config", "tiny.yaml", "--model.final_lr_fraction=0.1"]
    changed = WarmProcess(PLATFORM, *other, cwd=folder, env=killer_environment(folder)).done()
    assert changed.returncode == 2
    assert "model.final_lr_fraction: was 0.0, now 0.1" in changed.stderr
    assert "finished" in fit(folder).stdout


@pytest.mark.slow
def test_the_run_folder_holds_what_it_should(never_killed):
    run = never_killed / "run"
    assert {"config.yaml", "environment.json", "metrics.csv", "checkpoints"} <= {p.name for p in run.iterdir()}
    rows = read_metrics(run / "metrics.csv")
    assert [r["step"] for r in rows if "val/score" in r] == [4, 8, 10]
    assert [r["step"] for r in rows if "train/loss" in r] == [3, 6, 9, 10]
    kept = list_checkpoints(run / "checkpoints")
    assert [c.step for c in kept][-2:] == [8, 10]
    assert max((c.score or 0) for c in kept) == find_checkpoint(run, "best").score
