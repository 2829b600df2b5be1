"""A real SLURM controller with two nodes on this machine: preempted, signalled, out of time, a node gone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from inflate3d.data.shards.manifest import Manifest
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.training import find_checkpoint
from inflate3d.training.run.folder import read_run_config
from inflate3d.training.run.metrics_csv import read_metrics
from wandb.proto import wandb_internal_pb2
from warm_process import PLATFORM, WarmProcess

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "slurm" / "local_cluster.sh"
WAIT_S = 400
RESPITE_S = 12  # SLURM gives the old start's processes two minutes to be gone, before a new one comes
MICRO_BATCHES = 40
CONFIG = """
seed_everything: 3
ckpt_path: last
trainer:
  default_root_dir: run
  accelerator: cpu
  max_steps: 20
  accumulate_grad_batches: 2
  val_check_interval: 10
  log_every_n_steps: 1
  callbacks:
    - {class_path: inflate3d.training.CheckpointWriter, init_args: {every_minutes: 600}}
    - {class_path: toy_pace.ToyPace}
  limit_val_batches: 2
model:
  backbone: {name: test_resnet, stems: {ct: 1, mask: 1}, drop_path_rate: 0.1}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}
  tasks:
    organ: {class_path: MedicalSegmentation, init_args: {datasets: [seg], decoder_channels: [4, 4, 8, 8, 8]}}
    shape: {class_path: VolumeClassification, init_args: {datasets: [shapes], dropout: 0.2}}
data:
  root: shards
  num_workers: 1
  datasets:
    seg:
      batch_size: 4
      sample: {patch_size: [8, 16, 16]}
      augment: [{class_path: RandomFlip, init_args: {axes: [Left]}}]
      build: {class_path: Toy, init_args: {kind: volume_segmentation, num_train: 5, num_val: 2, size: 16}}
    shapes:
      batch_size: 4
      build: {class_path: Toy, init_args: {kind: volume_classification, num_train: 7, num_val: 2, size: 16}}
"""
# Notes the keys of every micro-batch, and is slow until a file says otherwise, so that others can disturb it.
PACE = """
import os, time
from pathlib import Path
import lightning.pytorch as pl

class ToyFailure(Exception):
    pass

class ToyPace(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        with open(f"keys{trainer.global_rank}.txt", "a") as file:
            file.write(f"{batch.micro_batch} {batch.dataset} {' '.join(batch.keys)}\\n")
        if Path("fail").exists() and batch.micro_batch == 2 and trainer.global_rank == 1:
            raise ToyFailure
        if not Path("hurry").exists():
            time.sleep(6 if Path("slowly").exists() else 3)
"""
SITE = """
environment:
  {{MASTER_ADDR: 127.0.0.1, GLOO_SOCKET_IFNAME: lo, OMP_NUM_THREADS: 1, PYTHONPATH: {folder}}}
save_before_s: {save_before_s}
"""


def shell(*command: str | Path, check: bool = True) -> str:
    """Run a command of SLURM's; return what it printed."""
    done = subprocess.run([str(c) for c in command], capture_output=True, encoding="utf-8", timeout=120)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A running controller; SLURM_CONF leads every command to it."""
    if not all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged", "sbatch")):
        pytest.skip(f"SLURM is not installed: {SCRIPT} install")
    folder = tmp_path_factory.mktemp("cluster")
    shell(SCRIPT, "start", folder)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    yield folder
    shell(SCRIPT, "stop", folder)
    os.environ.pop("SLURM_CONF")
    if before is not None:
        os.environ["SLURM_CONF"] = before


def write_inputs(folder: Path, *, save_before_s: int) -> None:
    """Write the config, the callback and the site's settings."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(CONFIG)
    (folder / "toy_pace.py").write_text(PACE)
    (folder / "site.yaml").write_text(SITE.format(folder=folder, save_before_s=save_before_s))


class Submitted:
    """A submitted run in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        hurry: bool = False,
        save_before_s: int = 0,
        limit: str = "30:00",
        nodes: int = 2,
    ) -> None:
        self.folder, self.run, self.impatient = folder, folder / "run", False
        write_inputs(folder, save_before_s=save_before_s)
        if hurry:
            self.hurry()
        done = self.platform(
            *(
                "submit",
                "--config",
                "tiny.yaml",
                "--nodes",
                str(nodes),
                "--time",
                limit,
                "--site",
                "site.yaml",
                *options,
            )
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self.id = done.stdout.split()[1].rstrip(":")
        self.said = done.stdout

    def platform(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(self.folder), "COLUMNS": "160"}
        return WarmProcess(PLATFORM, *arguments, cwd=self.folder, env=environment).done(WAIT_S)

    def hurry(self) -> None:
        (self.folder / "hurry").touch()

    @property
    def log(self) -> str:
        """What the job has printed over all its starts."""
        file = self.run / "slurm" / f"{self.id}.out"
        return file.read_text() if file.is_file() else ""

    def show(self) -> dict[str, str]:
        """What the controller says of the job."""
        words = shell("scontrol", "--oneliner", "show", "job", self.id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, what: Callable[[], bool], name: str) -> None:
        """Wait until something holds; after `start_again` SLURM's two minutes before a next start are cut short."""
        until, waits_since = time.monotonic() + WAIT_S, time.monotonic()
        while not what():
            assert time.monotonic() < until, f"{name} did not come: {self.show()}\n{self.log}"
            time.sleep(0.5)
            if self.show()["Reason"] != "BeginTime":
                waits_since = time.monotonic()
            elif self.impatient and time.monotonic() - waits_since > RESPITE_S:
                shell("scontrol", "update", f"jobid={self.id}", "StartTime=now", check=False)

    def wait_for_batch(self, micro_batch: int) -> None:
        self.wait_for(lambda: self.seen() >= micro_batch, f"micro-batch {micro_batch}")

    def seen(self) -> int:
        file = self.folder / "keys0.txt"
        return len(file.read_text().splitlines()) if file.is_file() else 0

    def wait_for_requeue(self, restarts: int = 1) -> None:
        """Wait until the job is back in the queue."""

        def requeued() -> bool:
            shown = self.show()
            return shown["JobState"] == "PENDING" and shown["Restarts"] == str(restarts)

        self.wait_for(requeued, "the requeue")

    def start_again(self) -> None:
        """Spare the job the two minutes that SLURM keeps it waiting, from now on."""
        self.impatient = True

    def wait_for_end(self) -> None:
        self.wait_for(lambda: self.show()["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"), "the end")
        assert self.show()["JobState"] == "COMPLETED", self.log

    def keys(self) -> dict[int, dict[int, str]]:
        """Keys by rank and micro-batch; a micro-batch that ran twice must have held the same."""
        found: dict[int, dict[int, str]] = {}
        for rank in (0, 1):
            for line in (self.folder / f"keys{rank}.txt").read_text().splitlines():
                index, _, keys = line.partition(" ")
                assert found.setdefault(rank, {}).setdefault(int(index), keys) == keys
        return found

    def state(self) -> dict[str, Any]:
        """What the last checkpoint holds."""
        last = find_checkpoint(self.run)
        assert last
        assert last.step == MICRO_BATCHES // 2
        return torch.load(last.state, weights_only=True)


@pytest.fixture(scope="module")
def undisturbed(cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    job = Submitted(tmp_path_factory.mktemp("undisturbed"), hurry=True)
    job.wait_for_end()
    return job


def assert_same_end(job: Submitted, undisturbed: Submitted) -> None:
    ours, theirs = job.keys(), undisturbed.keys()
    assert ours == theirs
    assert all(sorted(keys) == list(range(MICRO_BATCHES)) for keys in ours.values())
    one, other = job.state(), undisturbed.state()
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, tensor in one["state_dict"].items():
        assert torch.equal(tensor, other["state_dict"][name]), name
    assert one["DataModule"] == other["DataModule"]
    assert (job.run / "metrics.csv").read_bytes() == (undisturbed.run / "metrics.csv").read_bytes()


def test_an_undisturbed_run_of_two_nodes_ends_and_tells_how_it_went(undisturbed: Submitted) -> None:
    assert "watch it: platform status" in undisturbed.said
    status = undisturbed.platform("status", "run").stdout
    assert f"{undisturbed.id} COMPLETED" in status
    assert "finished" in status
    assert "20 of 20 (100.0 %)" in status
    assert "waiting for data" in status
    log = undisturbed.log
    assert log.count("config: ") == 1  # one rank speaks
    assert len(log.splitlines()) < 40, log  # plain lines, no bar
    again = undisturbed.platform("submit", "--config", "tiny.yaml", "--nodes", "2", "--time", "5:00")
    assert again.returncode == 2
    assert "this run has finished, 20 of 20 steps" in again.stderr
    other = undisturbed.platform(
        *("submit", "--config", "tiny.yaml", "--nodes", "2", "--time", "5:00", "--", "--model.optimizer.lr", "1e-4")
    )
    assert other.returncode == 2
    assert "model.optimizer.init_args.lr: was 0.001, now 0.0001" in other.stderr


def test_preempted_by_a_job_of_the_high_partition_it_requeues_itself_and_ends_the_same(
    undisturbed: Submitted, tmp_path: Path
) -> None:
    logger = "{class_path: WandbLogger, init_args: {project: p, offline: true}}"
    job = Submitted(tmp_path / "job", "--", "--trainer.logger", logger)
    job.wait_for_batch(7)
    running = job.platform("status", "run").stdout
    assert f"{job.id} RUNNING" in running
    assert "phase      training on" in running
    second = job.platform("submit", "--config", "tiny.yaml", "--nodes", "2", "--time", "5:00")
    assert f"job {job.id} is RUNNING and writes to it" in second.stderr
    high = shell(
        *("sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    )
    job.wait_for_requeue()
    assert "stopped by SIGTERM after step" in job.log
    job.wait_for(lambda: "reason: BeginTime" in job.platform("status", "run").stdout, "the reason for waiting")
    job.wait_for(lambda: "JobState=COMPLETED" in shell("scontrol", "show", "job", high), "the high job's end")
    job.hurry()
    job.start_again()
    job.wait_for_end()

    assert job.show()["Restarts"] == "1"
    assert job.log.count("requeued") == 1
    assert "going on from step" in job.log
    assert_same_end(job, undisturbed)
    wandb_id = (job.run / "wandb_id").read_text()
    assert len(list((job.run / "wandb").glob("offline-run-*"))) == 2
    assert len(list((job.run / "wandb").glob(f"offline-run-*-{wandb_id}"))) == 2
    logged = [row for file in job.run.glob("wandb/offline-run-*/*.wandb") for row in rows(file)]
    measured = [row["trainer/global_step"] for row in logged if not any(key.startswith("speed/") for key in row)]
    assert sorted(measured) == sorted(undisturbed_rows(undisturbed))
    starts = json.loads((job.run / "environment.json").read_text())["starts"]
    assert len(starts) == 2


def undisturbed_rows(undisturbed: Submitted) -> list[int]:
    """The steps of metrics.csv: each training row is one of W&B's, each validation row too."""
    return [int(row["step"]) for row in read_metrics(undisturbed.run / "metrics.csv")]


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """Read the history of an offline W&B file: a LevelDB log of protocol buffers behind 7 bytes."""
    data, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or a last piece
            parsed, record = wandb_internal_pb2.Record.FromString(record), b""
            if parsed.WhichOneof("record_type") == "history":
                yield {
                    (item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in parsed.history.item
                }


def test_usr1_to_the_ranks_and_a_cancelled_job_is_not_requeued(undisturbed: Submitted, tmp_path: Path) -> None:
    job = Submitted(tmp_path / "job")
    job.wait_for_batch(6)
    shell("scancel", "--signal=USR1", job.id)
    job.wait_for_requeue()
    assert "stopped by SIGUSR1 after step" in job.log
    job.start_again()
    job.wait_for_batch(job.seen() + 4)
    shell("scancel", job.id)
    job.wait_for(lambda: job.show()["JobState"] == "CANCELLED", "the cancelling")
    time.sleep(3)
    assert job.show()["JobState"] == "CANCELLED"
    assert job.log.count("requeued") == 1 + job.log.count("not requeued")

    more = Submitted(tmp_path / "job", hurry=True)  # submitted by hand, it goes on all the same
    more.wait_for_end()
    assert_same_end(more, undisturbed)


def test_before_its_time_limit_it_saves_and_requeues_itself(undisturbed: Submitted, tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "slowly").touch()  # it still trains when the signal comes, 150 s after its start
    job = Submitted(tmp_path / "job", save_before_s=150, limit="5:00")
    job.wait_for_requeue()
    assert "stopped by SIGUSR1 after step" in job.log
    job.hurry()
    job.start_again()
    job.wait_for_end()
    assert_same_end(job, undisturbed)


def test_a_lost_node_costs_no_more_than_the_steps_since_the_last_checkpoint(
    cluster: Path, undisturbed: Submitted, tmp_path: Path
) -> None:
    job = Submitted(tmp_path / "job")
    job.wait_for(lambda: find_checkpoint(job.run) is not None, "a checkpoint")
    job.wait_for_batch(job.seen() + 3)
    daemon = int((cluster / "slurmd.n2.pid").read_text())
    os.kill(daemon, signal.SIGKILL)
    job.wait_for_requeue()
    shell(SCRIPT, "node", cluster, "n2")
    job.wait_for(lambda: "idle" in shell("sinfo", "--noheader", "--nodes=n2", "--format=%T"), "the node")
    job.hurry()
    job.start_again()
    job.wait_for_end()
    assert job.show()["Restarts"] == "1", job.log
    assert "going on from step" in job.log
    assert_same_end(job, undisturbed)


def test_plain_fit_runs_in_an_allocation_of_salloc(cluster: Path, tmp_path: Path) -> None:
    write_inputs(tmp_path, save_before_s=0)
    (tmp_path / "hurry").touch()
    fit = [sys.executable, "-m", "inflate3d.cli.main", "fit", "--config", "tiny.yaml", "--trainer.max_steps", "2"]
    done = subprocess.run(
        ["salloc", "--nodes=1", "--ntasks=2", "--job-name=mine", *fit],
        cwd=tmp_path,
        env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = find_checkpoint(tmp_path / "run")
    assert last
    assert last.step == 2
    assert not (tmp_path / "keys1.txt").exists()


def test_srun_with_other_numbers_than_the_config_is_refused(cluster: Path, tmp_path: Path) -> None:
    write_inputs(tmp_path, save_before_s=0)
    fit = [sys.executable, "-m", "inflate3d.cli.main", "fit", "--config", "tiny.yaml"]
    done = subprocess.run(
        ["srun", "--nodes=2", "--ntasks-per-node=1", *fit],
        cwd=tmp_path,
        env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 2
    assert "give --trainer.num_nodes 2 --trainer.devices 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_fails_is_not_requeued(cluster: Path, tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "fail").touch()
    job = Submitted(tmp_path / "job", hurry=True)
    job.wait_for(lambda: job.show()["JobState"] == "FAILED", "the failure")
    assert job.show()["Restarts"] == "0"
    assert "ToyFailure" in job.log


def test_a_build_of_shards_runs_in_parts_and_is_merged(cluster: Path, tmp_path: Path) -> None:
    command = ["submit", "--array", "3", "--time", "5:00", "--", "shards", "build", "toy", "--output", "out/toy"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "inflate3d.cli.main", *command, "--kind", "volume_classification", "--num_train", "6"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stderr
    assert "when all parts are done: shards merge" in done.stdout
    until = time.monotonic() + WAIT_S
    while not (tmp_path / "out" / "toy" / "manifest.json").is_file():
        assert time.monotonic() < until, "\n".join(p.read_text() for p in tmp_path.glob("out/toy.slurm/*.out"))
        time.sleep(0.5)
    manifest = Manifest.load(tmp_path / "out" / "toy")
    assert manifest.num_samples("train") == 6


def test_a_sweep_gives_each_line_its_run(cluster: Path, tmp_path: Path) -> None:
    write_inputs(tmp_path, save_before_s=0)
    for name, kind in (("seg", "volume_segmentation"), ("shapes", "volume_classification")):
        build_shards(Toy(kind=kind, num_train=5, num_val=2, size=16), tmp_path / "shards" / name, progress=False)
    (tmp_path / "sweep.txt").write_text("# two rates\n--model.optimizer.lr 1e-3\n\n--model.optimizer.lr 1e-4\n")
    job = Submitted(tmp_path, "--array", "sweep.txt", "--", "--trainer.max_steps", "2", hurry=True, nodes=1)
    until = time.monotonic() + WAIT_S
    while not all(find_checkpoint(tmp_path / "run" / str(task)) for task in (0, 1)):
        assert time.monotonic() < until, "\n".join(p.read_text() for p in tmp_path.glob("run/slurm/*.out"))
        time.sleep(0.5)
    rates = [read_run_config(tmp_path / "run" / str(task))["model"]["optimizer"]["init_args"]["lr"] for task in (0, 1)]
    assert rates == [1e-3, 1e-4]
    status = job.platform("status", "run").stdout
    assert f"job {job.id}: 2 tasks" in status
    assert status.count("2 of 2 (100.0 %)") == 2


def test_the_controller_accepts_a_job_with_gpus(cluster: Path, tmp_path: Path) -> None:
    command = ["submit", "--config", "quickstart.yaml", "--nodes", "2", "--gpus-per-node", "1", "--time", "1:00:00"]
    own = ["--trainer.accelerator", "gpu", "--data.num_workers", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "inflate3d.cli.main", *command, "--dry-run", "--", *own],
        cwd=tmp_path,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "job.sbatch").write_text(done.stdout)
    shell("sbatch", "--test-only", tmp_path / "job.sbatch")
