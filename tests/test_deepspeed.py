"""ZeRO 1, 2 and 3 on two CPU ranks: losses, whole checkpoints, resumes with other ranks and strategies, publishing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import inflate3d
import pytest
import torch
from inflate3d.cli.config import load_config
from inflate3d.errors import InputError
from inflate3d.publishing import publish_run
from inflate3d.training import find_checkpoint
from inflate3d.training.checkpoints.store import list_checkpoints, remove
from inflate3d.training.run.metrics_csv import read_metrics
from loopback_servers import free_port
from nightly import nightly_but
from warm_process import PLATFORM, WarmProcess

STEPS = 50
CONFIG = f"""
seed_everything: 3
ckpt_path: last
trainer:
  default_root_dir: run
  accelerator: cpu
  devices: 1
  max_steps: {STEPS}
  accumulate_grad_batches: 2
  limit_val_batches: 0
  log_every_n_steps: 1
  callbacks:
    - {{class_path: inflate3d.training.CheckpointWriter, init_args: {{every_steps: 25, keep_last: 9}}}}
model:
  backbone: {{name: test_resnet, stems: {{ct: 1, mask: 1}}, norm: group}}
  # Calm steps: larger ones amplify rounding from step to step, under DDP as much as under ZeRO.
  optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 2.0e-4, eps: 1.0e-3}}}}
  warmup_steps: 4
  tasks:
    organ: {{class_path: MedicalSegmentation, init_args: {{datasets: [seg], decoder_channels: [4, 4, 8, 8, 8]}}}}
    shape: {{class_path: VolumeClassification, init_args: {{datasets: [shapes]}}}}
data:
  root: ../shards
  datasets:
    seg:
      batch_size: 2
      sample: {{patch_size: [8, 16, 16]}}
      build: {{class_path: Toy, init_args: {{kind: volume_segmentation, num_train: 5, num_val: 2, size: 16}}}}
    shapes:
      batch_size: 4
      build: {{class_path: Toy, init_args: {{kind: volume_classification, num_train: 7, num_val: 2, size: 16}}}}
"""


def fit(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(CONFIG)
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    ranks = [environment]
    if "--trainer.devices=2" in options:  # as a cluster starts them; Lightning would start the second cold
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
        ranks = [{**environment, "LOCAL_RANK": rank} for rank in ("0", "1")]
    command = (PLATFORM, "fit", "--config", "tiny.yaml", *options)
    done = [process.done(550) for process in [WarmProcess(*command, cwd=folder, env=env) for env in ranks]]
    assert all(d.returncode == 0 for d in done), "".join(d.stdout + d.stderr for d in done)
    return done[0]


def zero(stage: int, **options: Any) -> list[str]:
    extra = "".join(f", {k}: {str(v).lower()}" for k, v in options.items())
    strategy = f"{{class_path: inflate3d.training.DeepSpeed, init_args: {{stage: {stage}{extra}}}}}"
    return ["--trainer.strategy", strategy]


def losses(folder: Path) -> dict[int, float]:
    return {int(r["step"]): r["train/loss"] for r in read_metrics(folder / "run/metrics.csv") if "train/loss" in r}


def last_state(folder: Path) -> dict[str, Any]:
    return torch.load(find_checkpoint(folder / "run").state, weights_only=True)


def copy_without_the_end(folder: Path, to: Path) -> Path:
    """A run folder as it was at step 25."""
    shutil.copytree(folder, to)
    remove(list_checkpoints(to / "run/checkpoints")[-1])
    assert find_checkpoint(to / "run").step == 25
    return to


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def one_process(root: Path) -> Path:
    """One process with the same global batches."""
    fit(root / "one")
    return root / "one"


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("stage", nightly_but([3, 1, 2], 2))
def test_zero_trains_as_one_process_does_and_its_checkpoints_are_everyones(
    one_process: Path, root: Path, stage: int
) -> None:
    whole = root / f"zero{stage}"
    fit(whole, *zero(stage), "--trainer.devices=2")
    expected, found = losses(one_process), losses(whole)
    assert sorted(found) == list(range(1, STEPS + 1))
    torch.testing.assert_close(list(found.values()), list(expected.values()), rtol=1e-4, atol=0)
    assert [found[s] for s in range(1, 6)] == pytest.approx([expected[s] for s in range(1, 6)], rel=2e-6)

    # 1. With as many ranks: bit for bit.
    again = copy_without_the_end(whole, root / f"again{stage}")
    assert "going on from step 25" in fit(again, *zero(stage), "--trainer.devices=2").stdout
    ours, theirs = last_state(again), last_state(whole)
    for name, weight in theirs["state_dict"].items():
        assert torch.equal(weight, ours["state_dict"][name]), name
    for index, state in theirs["optimizer_states"][0]["state"].items():
        assert all(torch.equal(v, ours["optimizer_states"][0]["state"][index][k]) for k, v in state.items())

    # 2. With one rank, under another strategy: the next losses are the same.
    other = copy_without_the_end(whole, root / f"other{stage}")
    fit(other, *(zero(3) if stage == 1 else []), "--trainer.max_steps=30")
    went_on = losses(other)
    # A schedule towards 30 instead of 50 steps moves the weights elsewhere after the first of them.
    assert went_on[26] == pytest.approx(found[26], rel=1e-5)
    assert sorted(went_on) == list(range(1, 31))

    # 3. A checkpoint of one process goes on under ZeRO.
    if stage == 2:
        back = copy_without_the_end(one_process, root / "back")
        fit(back, *zero(stage), "--trainer.devices=2", "--trainer.max_steps=26")
        assert losses(back)[26] == pytest.approx(expected[26], rel=1e-5)

    # 4. It publishes, loads, and answers as it did (the replay is checked on load).
    published = publish_run(whole / "run", f"local-dir:{root / f'published{stage}'}").folder
    model = inflate3d.create_model(f"local-dir:{published}", pretrained=True, num_classes=0)
    assert torch.isfinite(model(torch.zeros(1, 1, 8, 16, 16))).all()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("stage", "name"), [(2, "test_resnet"), (3, "test_vit")])
def test_offloading_and_nets_with_position_embeddings(root: Path, stage: int, name: str) -> None:
    options = ["--trainer.max_steps=2", f"--model.backbone.name={name}"]
    if name == "test_vit":  # plain ViTs: one level, fixed image size
        options += ["--model.backbone.timm_kwargs={img_size: 16}", "--model.tasks.organ.decoder_channels=null"]
    fit(root / f"{name}-one", *options)
    fit(root / f"{name}-zero", *options, *zero(stage, offload_optimizer=True, offload_parameters=stage == 3))
    assert losses(root / f"{name}-zero") == pytest.approx(losses(root / f"{name}-one"), rel=1e-5)
    ours, theirs = last_state(root / f"{name}-zero")["state_dict"], last_state(root / f"{name}-one")["state_dict"]
    assert ours.keys() == theirs.keys()
    for key, weight in theirs.items():
        torch.testing.assert_close(ours[key], weight, rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.slow
def test_bf16_mixed_keeps_weights_and_statistics_in_float32(root: Path) -> None:
    # Maps stay above 1x1: there torch 2.14 now and then gives NaN for the gradient of a bf16 convolution on a CPU.
    options = ["--trainer.max_steps=2", "--trainer.precision=bf16-mixed", "--model.backbone.norm=per_domain"]
    options += ["--model.backbone.timm_kwargs={output_stride: 8}", "--model.tasks.organ.decoder_channels=[4, 4, 8]"]
    fit(root / "bf16-one", *options)
    fit(root / "bf16-zero", *options, *zero(2))
    assert losses(root / "bf16-zero") == pytest.approx(losses(root / "bf16-one"), rel=1e-2)
    state = last_state(root / "bf16-zero")["state_dict"]
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": 4}, "stage is 4; it must be 1, 2 or 3"),
        ({"stage": 2, "offload_parameters": True}, "offload_parameters needs stage 3"),
        ({"bucket_size": 0}, "bucket_size is 0"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    from inflate3d.training import DeepSpeed

    with pytest.raises(InputError, match=message):
        DeepSpeed(**options)


def test_a_missing_deepspeed_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from inflate3d.training.strategies import deepspeed

    monkeypatch.setattr(deepspeed, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'inflate3d\[deepspeed\]'"):
        deepspeed.DeepSpeed()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_packaged_configs_say_the_stage(stage: int) -> None:
    config = load_config(["quickstart.yaml", f"trainer/deepspeed_zero{stage}.yaml"])
    assert config.get("trainer", "strategy", "init_args", "stage") == stage
