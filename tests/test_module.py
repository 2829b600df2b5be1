"""The module: heads, idle heads, logged names, score, schedule, parameter groups, sliding windows."""

import json
import math
from pathlib import Path
from typing import ClassVar

import lightning.pytorch as pl
import pytest
import torch
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.models import BackboneConfig
from inflate3d.sample import Batch
from inflate3d.targets import ClassTarget, MaskTarget
from inflate3d.tasks.medical_segmentation import MedicalSegmentation
from inflate3d.tasks.video_action import VideoAction
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import (
    CheckpointWriter,
    DataModule,
    MultiTaskModule,
    default_callbacks,
    find_checkpoint,
    trainer_defaults,
    with_default_callbacks,
)
from inflate3d.training.check import Needs, check_run, task_problems
from inflate3d.training.idle import evaluation_mode
from inflate3d.training.optim import fuse, parameter_groups, warmup_cosine
from inflate3d.training.run.metrics_csv import read_metrics
from inflate3d.training.steering.loss_watch import LossWatch, TrainingFailure
from nightly import slow_but
from toy_batches import toy_card

STEMS = {"rgb": 3, "ct": 1, "mask": 1}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    for name, kind in (("seg", "volume_segmentation"), ("shapes", "volume_classification")):
        build_shards(Toy(kind=kind, num_train=8, num_val=3, size=16), root / name, progress=False)
    clips = Toy(kind="video_classification", num_train=8, num_val=3, size=32, num_frames=8)
    build_shards(clips, root / "clips", progress=False)
    return root


def toy_tasks():
    return {
        "organ": MedicalSegmentation(datasets=["seg"], loss_weight=2.0, decoder_channels=None),
        "shape": VolumeClassification(datasets=["shapes"]),
        "motion": VideoAction(datasets=["clips"], dropout=0.1),
    }


def toy_data(root: Path, **options) -> DataModule:
    datasets = {
        "seg": {"batch_size": 2, "sample": {"patch_size": [8, 16, 16]}},
        "shapes": {"batch_size": 2},
        "clips": {"batch_size": 2, "sample": {"num_frames": 8, "crop_size": 32}},
    }
    return DataModule(root=str(root), datasets=datasets, seed=0, **options)


def toy_module(**options) -> MultiTaskModule:
    options = {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-3), "warmup_steps": 1, **options}
    return MultiTaskModule(BackboneConfig(name="test_resnet", stems=STEMS), toy_tasks(), **options)


def toy_trainer(folder: Path, **options) -> pl.Trainer:
    settings = {**trainer_defaults(), "accelerator": "cpu", "devices": 1, "max_steps": 4, "log_every_n_steps": 2}
    settings |= {"default_root_dir": str(folder), "callbacks": default_callbacks(), "enable_progress_bar": True}
    return pl.Trainer(**{**settings, **options})


def built_module(shards: Path) -> MultiTaskModule:
    return toy_module().build({name: m.card for name, m in toy_data(shards).manifests.items()})


def batches(shards: Path, count: int) -> list[Batch]:
    loader = iter(toy_data(shards).train_dataloader())
    return [next(loader) for _ in range(count)]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_a_fit_over_three_kinds_logs_every_task_and_the_score(shards, tmp_path):
    trainer = toy_trainer(tmp_path, accumulate_grad_batches=3, val_check_interval=6)
    trainer.fit(toy_module(), datamodule=toy_data(shards))
    assert trainer.global_step == 4
    rows = read_metrics(tmp_path / "metrics.csv")
    keys = {key for row in rows for key in row}
    assert {"train/organ/seg/loss", "train/shape/shapes/loss", "train/motion/clips/loss", "train/loss", "lr"} <= keys
    assert {"val/organ/seg/dice", "val/shape/shapes/auroc", "val/motion/clips/accuracy", "val/score"} <= keys
    last = [row for row in rows if "val/score" in row][-1]
    main = [last["val/organ/seg/dice"], last["val/shape/shapes/accuracy"], last["val/motion/clips/accuracy"]]
    assert last["val/score"] == pytest.approx(sum(main) / 3)
    assert [row["step"] for row in rows if "val/score" in row] == [2, 4]
    assert [row["step"] for row in rows if "train/loss" in row] == [2, 4]


@pytest.mark.slow
def test_the_last_step_is_validated_whatever_the_interval(shards, tmp_path):
    trainer = toy_trainer(tmp_path, max_steps=3, val_check_interval=2)
    trainer.fit(toy_module(), datamodule=toy_data(shards))
    steps = [row["step"] for row in read_metrics(tmp_path / "metrics.csv") if "val/score" in row]
    assert steps == [2, 3]


def test_every_parameter_gets_a_gradient_in_every_micro_batch(shards):
    module = built_module(shards).train()
    for batch in batches(shards, 3):
        module.zero_grad()
        module.training_step(batch, 0).backward()
        assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []


def test_idle_heads_change_neither_loss_nor_gradient(shards):
    module = built_module(shards).eval()
    batch = batches(shards, 1)[0]
    (name,) = module.tasks_of[batch.dataset]
    task = module.tasks[name]
    alone = task.loss_weight * task.step(module.backbone, batch, seed=0)["loss"]
    everything = module.training_step(batch, 0)
    assert torch.equal(alone, everything)
    everything.backward()
    for other, head in module.heads.items():
        gradients = [p.grad for p in head.parameters()]
        assert any(g.abs().sum() > 0 for g in gradients) == (other == name)


def test_idle_heads_that_run_get_the_gradients_of_those_that_do_not(shards):
    module, batch, gradients = built_module(shards).eval(), batches(shards, 1)[0], []
    for runs in (False, True):
        module.zero_grad()
        for parameter in module.heads.parameters():
            if runs:
                parameter.ds_id = 0  # as ZeRO-3 marks what it holds in parts
        module.training_step(batch, 0).backward()
        gradients.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_norms_of_idle_heads_do_not_update_and_decay_does(shards):
    module = built_module(shards).train()
    norm = torch.nn.BatchNorm1d(module.backbone.feature_info.num_pooled)

    class ToyHead(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = norm, torch.nn.Linear(norm.num_features, 4)

        def forward(self, features):
            return self.linear(self.norm(features.pooled))

    module.heads["motion"]["clips"] = module.tasks["motion"].heads["clips"] = ToyHead()
    batch = next(b for b in batches(shards, 3) if b.dataset != "clips")
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.5)
    before = module.heads["motion"]["clips"].linear.weight.detach().clone()
    module.training_step(batch, 0).backward()
    optimizer.step()
    assert int(norm.num_batches_tracked) == 0
    assert torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))
    torch.testing.assert_close(module.heads["motion"]["clips"].linear.weight, before * (1 - 0.1 * 0.5))


def test_evaluation_mode_gives_each_part_its_own_mode_back():
    net = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.Dropout())).train()
    net[1][0].eval()
    with evaluation_mode(net):
        assert not any(m.training for m in net.modules())
    assert [m.training for m in net.modules()] == [True, True, True, False]


@pytest.mark.slow
def test_initial_weights_depend_on_the_seed_alone(shards, monkeypatch):
    torch.manual_seed(1)
    first = built_module(shards).state_dict()
    torch.manual_seed(2)
    second = built_module(shards).state_dict()
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    third = built_module(shards).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], third[k]) for k in first)


def test_whole_volumes_are_predicted_in_windows_of_the_training_patch(shards):
    module = built_module(shards).eval()
    module.windows = {"seg": (8, 16, 16)}
    sizes = []
    module.backbone.register_forward_pre_hook(lambda m, args: sizes.append(tuple(args[0].shape[2:])))
    batch = Batch({"image": torch.randn(1, 1, 13, 16, 20)}, {}, ["k"], "seg", torch.ones(1, 3))
    with torch.no_grad():
        probabilities = module.predict(batch).tensor
    assert probabilities.shape[2:] == (13, 16, 20)
    assert set(sizes) == {(8, 16, 16)}
    torch.testing.assert_close(probabilities.sum(1), torch.ones(1, 13, 16, 20))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_interval_task_and_samples(shards, tmp_path):
    module = toy_module(optimizer=lambda p: torch.optim.SGD(p, lr=1e30))
    with pytest.raises(TrainingFailure, match=r"steps \d+ to \d+: train/.* is (nan|inf)") as failure:
        toy_trainer(tmp_path, max_steps=50, limit_val_batches=0).fit(module, datamodule=toy_data(shards))
    (report,) = (tmp_path / "failures").glob("step-*-rank0.json")
    content = json.loads(report.read_text())
    bad = next(m for m in content["micro_batches"] if m["loss"] in ("nan", "inf"))
    assert [bad["task"]] == module.tasks_of[bad["dataset"]]
    for part in (f"task {bad['task']}, dataset {bad['dataset']}", *bad["keys"], str(report)):
        assert part in str(failure.value)


@pytest.mark.slow
def test_weights_that_are_not_finite_are_never_saved_between_two_rows(shards, tmp_path):
    class Break(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 2:
                next(pl_module.backbone.parameters()).data.fill_(math.nan)

    callbacks = with_default_callbacks([Break(), CheckpointWriter(every_steps=1)])
    trainer = toy_trainer(tmp_path, callbacks=callbacks, limit_val_batches=0, log_every_n_steps=50)
    with pytest.raises(TrainingFailure, match=r"steps 1 to 2: a weight is nan"):
        trainer.fit(toy_module(), datamodule=toy_data(shards))
    assert find_checkpoint(tmp_path).step == 1
    assert [p.name for p in (tmp_path / "failures").iterdir()] == ["step-00000002-rank0.json"]


def watched(watch: LossWatch, folder: Path, value: float) -> None:
    watch.add(Batch({}, {}, ["case_7"], "liver", None, 3), "organ", torch.tensor(value))
    watch.check({"train/organ/liver/loss": value}, step=20, steps=10, lr=0.1, folder=folder, rank=0)


def test_an_exploding_loss_stops_the_run_and_a_noisy_one_does_not(tmp_path):
    watch = LossWatch(explosion=20)
    for value in (2.0, 0.1, 39.0):
        watched(watch, tmp_path, value)
    resumed = LossWatch(explosion=20)
    resumed.load_state_dict(watch.state_dict())
    with pytest.raises(TrainingFailure, match=r"(?s)steps 11 to 20: train/organ/liver/loss is 41.*case_7"):
        watched(resumed, tmp_path, 41.0)
    assert (tmp_path / "step-00000020-rank0.json").is_file()


def test_max_steps_must_be_set(shards, tmp_path):
    with pytest.raises(InputError, match="max_steps is -1"):
        toy_trainer(tmp_path, max_steps=-1).fit(toy_module(), datamodule=toy_data(shards))


def test_a_validation_inside_an_accumulation_window_is_refused(shards, tmp_path):
    with pytest.raises(InputError, match="use a multiple, such as 6"):
        toy_trainer(tmp_path, accumulate_grad_batches=3, val_check_interval=5).fit(
            toy_module(), datamodule=toy_data(shards)
        )


@pytest.mark.slow
@pytest.mark.parametrize("val_batches", slow_but([0, 1], 1))
def test_a_run_that_is_ended_inside_an_accumulation_window_ends_after_it_and_is_saved(shards, tmp_path, val_batches):
    class TimeIsUp(pl.Callback):  # as Lightning's Timer for trainer.max_time
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.should_stop = trainer.should_stop or batch_idx >= 3

    callbacks = [TimeIsUp(), *default_callbacks()]
    options = {"accumulate_grad_batches": 3, "limit_val_batches": val_batches, "callbacks": callbacks}
    trainer = toy_trainer(tmp_path, max_steps=9, val_check_interval=27, **options)
    trainer.fit(toy_module(), datamodule=toy_data(shards))
    assert trainer.global_step == 2
    saved = find_checkpoint(tmp_path)
    assert saved.step == 2
    assert torch.load(saved.state, weights_only=True)["DataModule"]["consumed"] == 6
    assert bool(saved.metrics) == bool(val_batches)


class TestCrossReferences:
    mask: ClassVar = toy_card("a", mask=MaskTarget(("background", "organ")))
    label: ClassVar = toy_card("a", label=ClassTarget(("well", "ill")))

    def build(self, tasks, cards, stems=STEMS):
        MultiTaskModule(BackboneConfig(name="test_resnet", stems=stems), tasks).build(cards)

    def test_an_absent_dataset_is_refused_with_the_close_name(self):
        with pytest.raises(InputError, match=r"model\.tasks\.t\.init_args\.datasets: .*'livr'.*'liver'"):
            self.build({"t": MedicalSegmentation(datasets=["livr"])}, {"liver": self.mask})

    def test_a_dataset_without_the_tasks_target_is_refused(self):
        with pytest.raises(InputError, match="MedicalSegmentation needs a MaskTarget; targets of dataset 'a': label"):
            self.build({"t": MedicalSegmentation(datasets=["a"])}, {"a": self.label})

    def test_a_dataset_of_another_medium_is_refused(self):
        with pytest.raises(InputError, match="VideoAction takes video; dataset 'a' holds volume"):
            self.build({"t": VideoAction(datasets=["a"])}, {"a": self.label})

    def test_a_dataset_that_no_task_uses_is_refused(self):
        with pytest.raises(InputError, match=r"data\.datasets\.b: no task uses it"):
            self.build({"t": MedicalSegmentation(datasets=["a"])}, {"a": self.mask, "b": self.mask})

    def test_a_modality_without_a_stem_is_refused(self):
        with pytest.raises(InputError, match=r"model\.backbone\.stems.*'ct'"):
            self.build({"t": MedicalSegmentation(datasets=["a"])}, {"a": self.mask}, stems={"cta": 1})

    def test_every_problem_is_told_at_once_by_class_or_object(self):
        tasks = {"t": MedicalSegmentation(datasets=["a", "c"]), "u": VideoAction(datasets=["a"])}
        found = check_run(tasks, {"a": self.label, "b": self.mask})
        assert [problem.key_path[1:3] for problem in found] == [
            ("tasks", "t"),
            ("tasks", "t"),
            ("tasks", "u"),
            ("datasets", "b"),
        ]
        by_class = task_problems("t", Needs.of(MedicalSegmentation), ["a", "c"], {"a": self.label, "b": self.mask})
        assert by_class == found[:2]


def test_norms_and_biases_do_not_decay():
    net = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2), torch.nn.Linear(2, 2))
    decayed, free = parameter_groups(net, no_weight_decay={"2.weight"})
    assert [p.shape for p in decayed["params"]] == [net[0].weight.shape]
    assert free["weight_decay"] == 0
    assert len(free["params"]) == 5
    optimizer = torch.optim.AdamW([decayed, free], weight_decay=0.05)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.05, 0.0]


@pytest.mark.slow
def test_what_timm_spares_from_decay_is_spared(shards, tmp_path):
    module = toy_module()
    trainer = toy_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    module.build({name: m.card for name, m in toy_data(shards).manifests.items()})
    name, weight = next((n, p) for n, p in module.backbone.net.named_parameters() if p.ndim > 1)
    module.backbone.net.no_weight_decay = lambda: {name}
    trainer.fit(module, datamodule=toy_data(shards))
    decayed, free = trainer.optimizers[0].param_groups
    assert any(p is weight for p in free["params"])
    assert not any(p is weight for p in decayed["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(module.parameters()))


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Adam, torch.optim.Adagrad, torch.optim.SGD])
def test_one_kernel_takes_the_step_that_torch_takes_in_a_loop(make):
    nets = [torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)]
    nets[1].load_state_dict(nets[0].state_dict())
    steps = [make(net.parameters(), lr=0.1, weight_decay=0.1) for net in nets]
    fuse(steps[0])
    for _ in range(4):
        for net, optimizer in zip(nets, steps, strict=True):
            optimizer.zero_grad()
            net(torch.linspace(-1, 1, 10).view(2, 5)).square().sum().backward()
            optimizer.step()
    assert steps[0].param_groups[0]["fused"]
    torch.testing.assert_close(nets[0].weight, nets[1].weight)


@pytest.mark.slow
def test_who_chose_how_the_optimiser_steps_keeps_it(shards, tmp_path):
    module = toy_module(optimizer=lambda p: torch.optim.AdamW(p, fused=False))
    trainer = toy_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(module, datamodule=toy_data(shards))
    assert trainer.optimizers[0].param_groups[0]["fused"] is False


def test_the_schedule_warms_up_linearly_and_ends_at_the_final_fraction():
    factor = warmup_cosine(warmup_steps=4, max_steps=14, final_fraction=0.1)
    assert [factor(s) for s in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factor(4) == 1
    assert factor(9) == pytest.approx(0.55)
    assert factor(14) == pytest.approx(0.1)
    assert factor(20) == pytest.approx(0.1)


@pytest.mark.slow
def test_the_learning_rate_is_counted_in_optimiser_steps(shards, tmp_path):
    trainer = toy_trainer(tmp_path, accumulate_grad_batches=3, log_every_n_steps=1, limit_val_batches=0)
    trainer.fit(toy_module(warmup_steps=2), datamodule=toy_data(shards))
    factor = warmup_cosine(warmup_steps=2, max_steps=4)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["lr"] for row in rows] == pytest.approx([1e-3 * factor(step) for step in (0, 1, 2, 3)])


@pytest.mark.slow
def test_a_run_that_goes_on_to_more_steps_takes_its_first_one_at_the_new_rate(shards, tmp_path):
    rates = []

    class Spy(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    for max_steps in (2, 4):
        callbacks = with_default_callbacks([Spy()])
        trainer = toy_trainer(tmp_path, max_steps=max_steps, callbacks=callbacks, limit_val_batches=0)
        found = find_checkpoint(tmp_path)
        trainer.fit(toy_module(), datamodule=toy_data(shards), ckpt_path=found and str(found.state))
    short, long = (warmup_cosine(warmup_steps=1, max_steps=n) for n in (2, 4))
    assert rates == pytest.approx([1e-3 * f for f in (short(0), short(1), long(2), long(3))])


@pytest.mark.slow
def test_no_interval_means_one_row_at_the_end(shards, tmp_path):
    trainer = toy_trainer(tmp_path, log_every_n_steps=0, limit_val_batches=0, max_steps=3)
    trainer.fit(toy_module(), datamodule=toy_data(shards))
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == [3]


@pytest.mark.slow
def test_a_row_averages_all_micro_batches_since_the_last_one(shards, tmp_path):
    trainer = toy_trainer(tmp_path, accumulate_grad_batches=3, limit_val_batches=0)
    module, seen = toy_module(), []

    class Spy(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            (task,) = pl_module.tasks_of[batch.dataset]
            seen.append(float(outputs["loss"]) * 3 / pl_module.tasks[task].loss_weight)

    trainer.callbacks.insert(0, Spy())
    trainer.fit(module, datamodule=toy_data(shards))
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["train/loss"] for row in rows] == pytest.approx([sum(seen[:6]) / 6, sum(seen[6:]) / 6], rel=1e-5)
    for row in rows:
        each = [row["train/organ/seg/loss"], row["train/shape/shapes/loss"], row["train/motion/clips/loss"]]
        assert row["train/loss"] == pytest.approx(sum(each) / 3, rel=1e-5)
