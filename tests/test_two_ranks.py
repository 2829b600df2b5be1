"""Two ranks of one run: killed at any moment, or cut off from their data, they end where ranks never disturbed end."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from inflate3d.training import find_checkpoint
from inflate3d.training.run.metrics_csv import read_metrics
from inflate3d.training.run.train_means import TrainMeans
from loopback_servers import free_port
from nightly import nightly_but, some
from test_resume import assert_equal_state, keys_seen
from warm_process import PLATFORM, WarmProcess

CONFIG = """
seed_everything: 3
trainer:
  default_root_dir: run
  accelerator: cpu
  devices: 2
  strategy: ddp
  max_steps: 7
  accumulate_grad_batches: 2
  val_check_interval: 6
  log_every_n_steps: 4
  callbacks:
    - {class_path: inflate3d.training.CheckpointWriter, init_args: {every_steps: 1}}
    - {class_path: toy_trouble.ToyTrouble}
model:
  backbone: {name: test_resnet, stems: {mask: 1}, drop_path_rate: 0.1}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}
  tasks: {shape: {class_path: VolumeClassification, init_args: {datasets: [shapes], dropout: 0.2}}}
data:
  root: shards
  datasets:
    shapes:
      batch_size: 4
      build: {class_path: Toy, init_args: {kind: volume_classification, num_train: 9, num_val: 6, size: 16}}
"""

# Notes the keys of every micro-batch; TROUBLE says which rank dies where, or from where on it cannot read.
TROUBLE = """
import os, signal
import lightning.pytorch as pl
import torch
from inflate3d.data.stream.batches import TrainStream
from inflate3d.remote.outcomes import Unreachable

RANK, KIND, AT = (os.environ.get("TROUBLE", "") + "::").split(":")[:3]
MINE = os.environ["LOCAL_RANK"] == RANK

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def half(state, path):
    torch_save(state, path)
    os.truncate(path, os.path.getsize(path) // 2)
    die()

torch_save = torch.save
whole = TrainStream.batch

def batch(self, number):
    if number >= int(AT):
        raise Unreachable("https://host/set: cannot be reached (HTTP 503). Run the same again to go on from there")
    return whole(self, number)

if MINE and KIND == "outage":
    TrainStream.batch = batch

class ToyTrouble(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        with open(f"keys{trainer.global_rank}.txt", "a") as file:
            file.write(f"{batch.micro_batch} {batch.dataset} {' '.join(batch.keys)}\\n")
        if MINE and KIND == "batch" and batch.micro_batch == int(AT):
            die()
        if MINE and KIND == "save" and trainer.global_step == int(AT) - 1:
            torch.save = half

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if MINE and KIND == "step" and trainer.global_step == int(AT):
            die()

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if MINE and KIND == "validation" and trainer.global_step == int(AT):
            die()
"""
# Ten moments, in windows, steps, validations and saves, of either rank.
MOMENTS = [("1:batch:5",), ("0:batch:0",), ("0:batch:6",), ("1:batch:13",), ("0:step:2",), ("1:step:4",)]
MOMENTS += [("0:save:2",), ("0:save:5",), ("0:validation:3",), ("1:validation:6",)]


PROBE = """    - class_path: inflate3d.evaluation.FrozenProbe
      init_args: {dataset: shapes, task: volume_classification, every_steps: 2, seeds: [0], max_samples: 6}
"""


def fit(folder: Path, trouble: str = "", config: str = CONFIG) -> list[subprocess.CompletedProcess[str]]:
    """Run both ranks; where one is killed, so is the other, as with their node."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(config)
    (folder / "toy_trouble.py").write_text(TROUBLE)
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1", "TROUBLE": trouble}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    ranks = [
        WarmProcess(PLATFORM, "fit", "--config", "tiny.yaml", cwd=folder, env={**environment, "LOCAL_RANK": str(r)})
        for r in range(2)
    ]
    if trouble and "outage" not in trouble:
        victim = int(trouble[0])
        assert ranks[victim].wait() == -signal.SIGKILL
        ranks[1 - victim].kill()
    return [rank.done() for rank in ranks]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = fit(folder)
    assert [rank.returncode for rank in done] == [0, 0], done[0].stdout + done[0].stderr + done[1].stderr
    assert ["report: run/report.html" in rank.stdout for rank in done] == [True, False]
    return folder


PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "DataModule", "train_means")


def assert_ends_as(folder: Path, undisturbed: Path, *parts: str) -> None:
    done = fit(folder)
    assert [rank.returncode for rank in done] == [0, 0], done[0].stdout + done[0].stderr + done[1].stderr
    for rank in range(2):
        assert keys_seen(folder, rank) == keys_seen(undisturbed, rank)
        assert sorted(keys_seen(folder, rank)) == list(range(14))
    one, other = (torch.load(find_checkpoint(f / "run").state, weights_only=True) for f in (folder, undisturbed))
    for part in (*PARTS, *parts):
        assert_equal_state(one[part], other[part])
    assert (folder / "run/metrics.csv").read_bytes() == (undisturbed / "run/metrics.csv").read_bytes()
    assert [r["step"] for r in read_metrics(folder / "run/metrics.csv") if "train/loss" in r] == [4, 7]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("moment", nightly_but(["", "0:step:4"], 1))
def test_a_probe_on_the_first_rank_leaves_both_as_they_are(undisturbed: Path, tmp_path: Path, moment: str) -> None:
    config = CONFIG.replace("model:\n", f"{PROBE}model:\n", 1)
    if moment:
        fit(tmp_path, moment, config)
    done = fit(tmp_path, config=config)
    assert [rank.returncode for rank in done] == [0, 0], done[0].stdout + done[0].stderr + done[1].stderr
    one, other = (torch.load(find_checkpoint(f / "run").state, weights_only=True) for f in (tmp_path, undisturbed))
    for part in PARTS:
        assert_equal_state(one[part], other[part])
    rows = read_metrics(tmp_path / "run/metrics.csv")
    assert [r["step"] for r in rows if "probe/shapes/1/accuracy" in r] == [0, 2, 4, 6, 7]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("moment", some(MOMENTS, MOMENTS[:1]))
def test_two_ranks_that_are_killed_end_as_if_they_were_not(undisturbed: Path, tmp_path: Path, moment: str) -> None:
    fit(tmp_path / "killed", moment)
    assert_ends_as(tmp_path / "killed", undisturbed, "loops")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("trouble", "step"), some([("1:outage:9", 3), ("0:outage:9", 3), ("1:outage:0", 0)], [("1:outage:9", 3)])
)
def test_an_outage_of_one_rank_is_saved_by_both(undisturbed: Path, tmp_path: Path, trouble: str, step: int) -> None:
    done = fit(tmp_path / "cut off", trouble)
    assert done[0].returncode == 1
    assert "Traceback" not in done[0].stderr + done[1].stderr
    assert done[0].stderr.strip().splitlines()[-1].startswith("error: ")
    found = find_checkpoint(tmp_path / "cut off" / "run")
    assert (found.step if found else 0) == step
    if step:
        assert done[0].stderr.strip().endswith(f"Now step {step} of 7 is saved")
        assert "HTTP 503" in done[int(trouble[0])].stderr
    assert_ends_as(tmp_path / "cut off", undisturbed)


def test_sums_of_all_ranks_are_kept_and_add_up_among_other_ranks() -> None:
    values = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    ranks = [TrainMeans() for _ in range(3)]
    for means, own in zip(ranks, values, strict=True):
        for value in own:
            means.add({"train/a/b/loss": value})
    total = torch.stack([torch.tensor([float(own.sum()), 4.0], dtype=torch.float64) for own in values]).sum(0)

    def states(rank: int) -> list:  # what an all-reduce gives: the rows that each rank fills
        filled = []
        for i, means in enumerate(ranks):
            means.state_dict(reduce=lambda t: filled.append(t.clone()) or t, rank=i, world_size=3)
        return ranks[rank].state_dict(reduce=lambda t: sum(filled), rank=rank, world_size=3)

    state = states(0)
    assert state == states(2)
    for world_size in (1, 2, 3, 6):
        parts = []
        for rank in range(world_size):
            means = TrainMeans()
            means.load_state_dict(state, rank=rank, world_size=world_size)
            means.take(reduce=lambda t, parts=parts: parts.append(t) or t)
        summed = sum(parts)
        assert summed[0].tolist() == pytest.approx([float(total[0])] * 2, rel=1e-6)
        assert summed[1].tolist() == [12, 12]
    same = TrainMeans()
    same.load_state_dict(state, rank=1, world_size=3)
    assert same._sums == ranks[1]._sums  # bit for bit where the ranks are as many
