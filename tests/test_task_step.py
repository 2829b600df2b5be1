"""Tasks own their steps: several on one dataset, modules and teachers of their own, losses of what has no score."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import toy_teacher
from inflate3d.contracts import Features, Masks, Values
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.models import BackboneConfig
from inflate3d.sample import Batch
from inflate3d.targets import ClassTarget, MaskTarget, ValueTarget
from inflate3d.tasks.medical_segmentation import MedicalSegmentation
from inflate3d.tasks.regression import Regression
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import MultiTaskModule, find_checkpoint
from inflate3d.training.run.metrics_csv import read_metrics
from inflate3d.training.step_encoder import StepEncoder
from nightly import nightly_but
from toy_batches import toy_batch, toy_card
from toy_teacher import MOMENTUM, toy_module

CARD = toy_card(
    "scans", organ=ClassTarget(("a", "b", "c")), mask=MaskTarget(("none", "lesion")), age=ValueTarget("years")
)
SIZE = (8, 16, 16)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    for name, kind in (("all", "volume_targets"), ("seg", "volume_segmentation")):
        build_shards(Toy(kind=kind, num_train=7, num_val=3, size=16), root / name, progress=False)
    return root


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def three_tasks(**options: Any) -> MultiTaskModule:
    tasks = {
        "organ": VolumeClassification(datasets=["scans"], loss_weight=0.5),
        "cut": MedicalSegmentation(datasets=["scans"]),
        "age": Regression(datasets=["scans"], scale=10, centre=40, loss_weight=2.0),
    }
    return MultiTaskModule(BackboneConfig("test_resnet"), tasks, **options).build({"scans": CARD})


# --------------------------------------------------------------------------------------- several tasks on one dataset


def test_one_dataset_serves_three_tasks_by_one_pass_of_the_backbone() -> None:
    module, batch, passes = three_tasks().eval(), toy_batch(CARD, size=SIZE), []
    each = {name: task.step(module.backbone, batch, seed=0)["loss"].detach() for name, task in module.tasks.items()}
    module.backbone.register_forward_hook(lambda *_: passes.append(1))
    loss = module.training_step(batch, 0)
    assert len(passes) == 1
    torch.testing.assert_close(loss, 0.5 * each["organ"] + each["cut"] + 2.0 * each["age"])
    loss.backward()
    assert all(p.grad is not None for p in module.parameters())
    row = module.means.take(reduce=lambda t: t)
    assert {k: row[f"train/{k}/scans/loss"] for k in each} == pytest.approx({k: float(v) for k, v in each.items()})
    assert set(module.state_dict()) >= {"heads.organ.scans.linear.weight", "heads.age.scans.linear.weight"}


def test_each_task_answers_and_is_scored_apart() -> None:
    module, batch = three_tasks().eval(), toy_batch(CARD, size=SIZE)
    with torch.no_grad():
        module.validation_step(batch, 0)
        keys, answers = module.predict_step(batch, 0)
    assert keys == batch.keys
    assert isinstance(answers["cut"], Masks)
    assert isinstance(answers["age"], Values)
    values = module.scores.compute(module.scores.seen(device=torch.device("cpu"), reduce=lambda t: t))
    error = (answers["age"].tensor - batch.targets["age"]).abs().mean()
    assert values["age/scans/mae"] == pytest.approx(float(error), rel=1e-5)
    main = [values["organ/scans/accuracy"], values["cut/scans/dice"], values["age/scans/r2"]]
    assert values["score"] == pytest.approx(sum(main) / 3)


@pytest.mark.slow
def test_samples_larger_than_the_patch_are_blended_or_averaged_by_the_type_of_answer() -> None:
    module = three_tasks().eval()
    module.windows = {"scans": SIZE}
    batch = toy_batch(CARD, batch=2, size=(8, 24, 16))
    with torch.no_grad():
        masks, ages = module.predict(batch, "cut"), module.predict(batch, "age")
        starts = [batch.image[..., h : h + 16, :] for h in (0, 8)]
        parts = [Batch({"image": view}, {}, batch.keys, "scans", batch.spacing_mm) for view in starts]
        expected = torch.stack([module.predict(part, "age").tensor for part in parts]).mean(0)
        whole = module.predict(parts[0], "cut").tensor
    assert masks.tensor.shape == (2, 2, 8, 24, 16)
    torch.testing.assert_close(ages.tensor, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(masks.tensor[..., :8, :], whole[..., :8, :], rtol=1e-4, atol=1e-4)


def test_a_view_is_encoded_anew_when_it_has_changed_or_gradients_are_wanted() -> None:
    module, batch, passes = three_tasks(), toy_batch(CARD, size=SIZE), []
    module.backbone.register_forward_hook(lambda *_: passes.append(1))
    encoder = StepEncoder(module.backbone)
    with torch.no_grad():
        first = encoder(batch.image, domain="scans")
    assert encoder.made == []
    second = encoder(batch.image, domain="scans")
    assert encoder(batch.image, domain="scans") is second
    assert first is not second
    batch.image.add_(1)
    third = encoder(batch.image, domain="scans")
    assert len(passes) == 3
    assert [one is other for one, other in zip(encoder.made, (second, third), strict=True)] == [True, True]


def test_loss_weighting_by_constants_needs_a_constant_answer() -> None:
    module = toy_module()
    module.loss_weighting = "constant"
    cards = {"all": Toy(kind="volume_targets").card, "seg": Toy().card}
    with pytest.raises(InputError, match=r"model\.loss_weighting: constant .*ToyTeacher of task 'teacher' has none"):
        module.build(cards)


def test_constant_weighting_divides_each_task_by_the_loss_of_its_own_constant(shards: Path, tmp_path: Path) -> None:
    tasks = {"shape": VolumeClassification(datasets=["all"]), "size": Regression(datasets=["all"], scale=1)}
    config = BackboneConfig("test_resnet", norm="group")
    module = MultiTaskModule(config, tasks, loss_weighting="constant")
    data = toy_teacher.toy_data(shards).prepare()
    own = {"all": data.datasets["all"]}
    settings = {**toy_teacher.defaults(), "accelerator": "cpu", "devices": 1, "max_steps": 1, "limit_val_batches": 0}
    settings |= {"default_root_dir": str(tmp_path), "callbacks": toy_teacher.with_callbacks([], progress_bar=False)}
    fresh = type(data)(str(shards), own, seed=0)
    pl.Trainer(**settings, enable_progress_bar=False).fit(module, datamodule=fresh)
    values = torch.cat([b.targets["volume"] for b in fresh.first_batches("all", 4)])
    expected = (values - values.mean()).square().mean()
    assert set(module.constant_losses) == {"shape/all", "size/all"}
    assert module.constant_losses["size/all"] == pytest.approx(float(expected), rel=1e-4)


# ------------------------------------------------------------------------------------- modules and teachers of a task


@pytest.mark.slow
def test_a_teacher_is_in_the_checkpoint_and_in_nobodys_parameters(shards: Path, tmp_path: Path) -> None:
    module = toy_module()
    trainer = toy_teacher.fit(tmp_path, shards, module, max_steps=2)
    (optimizer,) = trainer.optimizers
    teacher = module.tasks["teacher"].frozen_modules()["teacher"]
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]} | {
        id(p) for p in module.parameters()
    }
    assert not trained & {id(p) for p in teacher.parameters()}
    assert not any("teacher.teacher" in key for key in module.state_dict())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(m.training for m in teacher.modules())
    module.train()
    assert not any(m.training for m in teacher.modules())
    state = torch.load(find_checkpoint(tmp_path).state, weights_only=True)
    saved = {key.removeprefix("teacher.teacher."): value for key, value in state["frozen"].items()}
    assert saved.keys() == teacher.state_dict().keys()
    assert all(torch.equal(value, saved[key]) for key, value in teacher.state_dict().items())
    assert next(module.double().tasks["teacher"].frozen_modules()["teacher"].parameters()).dtype == torch.float64


@pytest.mark.slow
def test_a_teacher_moves_once_an_optimiser_step_by_the_formula(shards: Path, tmp_path: Path) -> None:
    module, name = toy_module(norm="group"), "net.layer1.0.conv1.weight"
    expected: list[torch.Tensor] = []

    class ToySpy(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            expected.append(pl_module.backbone.state_dict()[name].clone())

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx % 2:
                now = pl_module.backbone.state_dict()[name]
                expected.append(MOMENTUM * expected[-1] + (1 - MOMENTUM) * now)

    toy_teacher.fit(tmp_path, shards, module, ToySpy(), max_steps=3)
    assert module.tasks["teacher"].steps == [1, 2, 3]  # type: ignore[attr-defined]
    teacher = module.tasks["teacher"].frozen_modules()["teacher"]
    torch.testing.assert_close(teacher.state_dict()[name], expected[-1])
    assert not torch.equal(teacher.state_dict()[name], expected[0])


@pytest.mark.slow
def test_a_tasks_own_module_idles_and_a_task_without_a_score_logs_its_loss(shards: Path, tmp_path: Path) -> None:
    module = toy_module(norm="group", noise=0.5).build(
        {n: m.card for n, m in toy_teacher.toy_data(shards).manifests.items()}
    )
    batches = toy_teacher.toy_data(shards)
    for name in ("all", "seg"):
        module.train().zero_grad()
        module.training_step(batches.first_batches(name, 1)[0], 0).backward()
        assert all(p.grad is not None for p in module.parameters())
        gradient = module.heads["teacher"]["student"].weight.grad  # type: ignore[index, union-attr]
        assert bool(gradient.any()) == (name == "all")  # type: ignore[union-attr]
    toy_teacher.fit(tmp_path, shards, module, limit_val_batches=1.0, val_check_interval=4, max_steps=4)
    rows = [row for row in read_metrics(tmp_path / "metrics.csv") if "val/score" in row]
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        assert math.isfinite(row["val/teacher/all/loss"])
        main = [row["val/shape/all/accuracy"], row["val/size/all/r2"], row["val/organ/seg/dice"]]
        assert row["val/score"] == pytest.approx(sum(main) / 3)
    module.eval()
    batch = next(iter(batches.val_dataloader()))
    with torch.no_grad():
        step = module.tasks["teacher"].step
        losses = [module._held_out("teacher", batch, step)["loss"] for _ in range(2)]
        assert torch.equal(*losses)
        assert isinstance(module.predict(batch, "teacher"), Features)


@pytest.mark.slow
@pytest.mark.parametrize("crash", [5, 9])
def test_a_teacher_goes_on_bit_for_bit(shards: Path, tmp_path: Path, crash: int) -> None:
    class ToyCrash(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Batch, batch_idx: int) -> None:
            if batch.micro_batch == crash:
                raise KeyError("crash")

    toy_teacher.fit(tmp_path / "whole", shards, toy_module(noise=0.5))
    with pytest.raises(KeyError, match="crash"):
        toy_teacher.fit(tmp_path / "crashed", shards, toy_module(noise=0.5), ToyCrash())
    toy_teacher.fit(tmp_path / "crashed", shards, toy_module(noise=0.5))
    assert_same(tmp_path / "whole", tmp_path / "crashed")


def assert_same(one: Path, other: Path) -> None:
    """The last checkpoints and the rows of two runs are equal, bit for bit."""
    states = [torch.load(find_checkpoint(run).state, weights_only=True) for run in (one, other)]
    for part in ("state_dict", "frozen"):
        assert states[0][part].keys() == states[1][part].keys()
        assert all(torch.equal(value, states[1][part][key]) for key, value in states[0][part].items())
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()


# -------------------------------------------------------------------------------------- processes, ranks, strategies


def script(run: Path, shards: Path, *options: str, kill: str = "") -> None:
    command = [sys.executable, str(Path(toy_teacher.__file__)), str(run), str(shards), *options]
    environment = {**os.environ, "KILL": kill, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=1500)
    assert done.returncode == (-signal.SIGKILL if kill else 0), done.stdout[-2000:] + done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_teacher_goes_on_bit_for_bit_after_a_kill(shards: Path, tmp_path: Path) -> None:
    script(tmp_path / "killed", shards, "--noise=0.5", kill="3")
    assert find_checkpoint(tmp_path / "killed").step == 2
    for name in ("whole", "killed"):
        toy_teacher.fit(tmp_path / name, shards, toy_module(noise=0.5))
    assert_same(tmp_path / "whole", tmp_path / "killed")


@pytest.fixture(scope="module")
def one_process(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    toy_teacher.fit(folder, shards, toy_module(norm="group"))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("strategy", nightly_but(["zero3", "ddp", "zero1", "zero2"], 2))
def test_a_teacher_is_the_same_on_every_rank_and_under_every_strategy(
    one_process: Path, shards: Path, tmp_path: Path, strategy: str
) -> None:
    script(tmp_path, shards, "--norm=group", f"--strategy={strategy}", "--devices=2")
    assert (tmp_path / "teacher-0.txt").read_text() == (tmp_path / "teacher-1.txt").read_text()
    ours, theirs = (torch.load(find_checkpoint(f).state, weights_only=True) for f in (tmp_path, one_process))
    for part in ("state_dict", "frozen"):
        assert ours[part].keys() == theirs[part].keys()
        for key, value in theirs[part].items():
            torch.testing.assert_close(ours[part][key], value, rtol=1e-3, atol=2e-5, msg=f"{part} {key}")
    losses = [[row["train/loss"] for row in read_metrics(f / "metrics.csv")] for f in (tmp_path, one_process)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_statistics_that_follow_a_ranks_own_batches_do_not_part_its_teacher(shards: Path, tmp_path: Path) -> None:
    script(tmp_path, shards, "--norm=per_domain", "--strategy=ddp", "--devices=2", "--steps=3")
    assert (tmp_path / "teacher-0.txt").read_text() == (tmp_path / "teacher-1.txt").read_text()
