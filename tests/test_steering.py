"""Steering many tasks: loss weighting, layer decay, freezing, the gradient probe, first batches, EMA."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import inflate3d
import lightning.pytorch as pl
import pytest
import torch
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.models import Backbone, BackboneConfig
from inflate3d.publishing import publish_run
from inflate3d.tasks.medical_segmentation import MedicalSegmentation
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import (
    EMA,
    CheckpointWriter,
    DataModule,
    GradientProbe,
    MultiTaskModule,
    find_checkpoint,
    trainer_defaults,
    with_default_callbacks,
)
from inflate3d.training.optim import layer_scales, parameter_groups
from inflate3d.training.run.metrics_csv import read_metrics
from inflate3d.training.run.step_record import StepRecord
from inflate3d.training.weighting import TaskUncertainty
from torch import nn

STEMS = {"ct": 1, "mask": 1}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    for name, kind in (("seg", "volume_segmentation"), ("shapes", "volume_classification")):
        build_shards(Toy(kind=kind, num_train=6, num_val=2, size=16), root / name, progress=False)
    return root


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def toy_module(norm: str = "group", **options: Any) -> MultiTaskModule:
    tasks = {
        "organ": MedicalSegmentation(datasets=["seg"], decoder_channels=[4, 4, 8, 8, 8]),
        "shape": VolumeClassification(datasets=["shapes"]),
    }
    options = {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2), **options}
    return MultiTaskModule(BackboneConfig(name="test_resnet", stems=STEMS, norm=norm), tasks, **options)


def toy_data(shards: Path) -> DataModule:
    datasets = {"seg": {"batch_size": 2, "sample": {"patch_size": [8, 16, 16]}}, "shapes": {"batch_size": 2}}
    return DataModule(str(shards), datasets, seed=0)


def fit(shards: Path, folder: Path, module: MultiTaskModule, *callbacks: Any, **options: Any) -> pl.Trainer:
    settings = {**trainer_defaults(), "accelerator": "cpu", "devices": 1, "max_steps": 3, "log_every_n_steps": 1}
    settings |= {
        "default_root_dir": str(folder),
        "limit_val_batches": 0,
        "callbacks": with_default_callbacks([*callbacks]),
    }
    trainer = pl.Trainer(**{**settings, **options})
    found = find_checkpoint(folder)
    trainer.fit(module, datamodule=toy_data(shards), ckpt_path=found and str(found.state))
    return trainer


# ---------------------------------------------------------------------------------------------------- loss weights


def test_uncertainty_finds_the_optimum_that_kendalls_loss_has():
    weigh = TaskUncertainty(["a", "b"])
    optimizer = torch.optim.SGD(weigh.parameters(), lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        (weigh("a", torch.tensor(3.0)) + weigh("b", torch.tensor(0.25))).backward()
        optimizer.step()
    assert weigh.weights() == pytest.approx({"a": 1 / 6, "b": 2.0}, rel=1e-3)


@pytest.mark.slow
def test_uncertainty_is_learned_logged_and_saved(shards, tmp_path):
    module = toy_module(loss_weighting="uncertainty")
    fit(shards, tmp_path, module)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert rows[-1]["weight/organ"] != rows[-1]["weight/shape"]
    state = torch.load(find_checkpoint(tmp_path).state, weights_only=True)["state_dict"]
    assert torch.equal(state["task_uncertainty.log_variance"], module.task_uncertainty.log_variance)


def test_constant_weighting_divides_by_the_loss_of_the_class_frequencies(shards, tmp_path):
    module = toy_module(loss_weighting="constant")
    fit(shards, tmp_path, module, max_steps=1)
    labels = torch.cat([b.targets["label"] for b in toy_data(shards).prepare().first_batches("shapes", 4)])
    counts = torch.bincount(labels, minlength=3).double() + 1
    expected = -(counts / counts.sum()).log()[labels].mean()
    assert module.constant_losses["shape/shapes"] == pytest.approx(float(expected), rel=1e-5)
    assert 0 < module.constant_losses["organ/seg"] < math.inf
    saved = torch.load(find_checkpoint(tmp_path).state, weights_only=True)
    assert saved["constant_losses"] == module.constant_losses
    batch = toy_data(shards).prepare().first_batches("shapes", 1)[0]
    module.eval()
    plain = module.tasks["shape"].step(module.backbone, batch, seed=0)["loss"]
    torch.testing.assert_close(module.training_step(batch, 0), plain / module.constant_losses["shape/shapes"])


# --------------------------------------------------------------------------------------- learning rates and freezing


def test_layer_decay_falls_from_the_heads_to_the_stem(shards):
    module = toy_module(layer_decay=0.5).build({n: m.card for n, m in toy_data(shards).manifests.items()})
    scales = layer_scales(module.backbone.net, 0.5)
    assert scales["conv1.0.ct.weight"] == scales["conv1.0.mask.weight"] == min(scales.values())
    assert max(scales.values()) == 0.5
    groups = parameter_groups(module, lr_scale={f"backbone.net.{n}": s for n, s in scales.items()})
    scale_of = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    assert all(scale_of[id(p)] == 1 for p in module.heads.parameters())
    assert scale_of[id(module.backbone.net.conv1[0]["ct"].weight)] == min(scales.values())
    assert len(scale_of) == len(list(module.parameters()))


def test_a_frozen_part_does_not_move_until_its_time_and_its_statistics_neither(shards, tmp_path):
    module = toy_module(norm="per_domain", freeze={"backbone": 2})
    moved: list[bool] = []

    class ToySpy(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            self.before = {k: v.clone() for k, v in pl_module.backbone.state_dict().items()}
            self.head = pl_module.heads["shape"]["shapes"].linear.weight.detach().clone()

        def on_train_batch_end(self, trainer, pl_module, *args):
            now = pl_module.backbone.state_dict()
            same = all(torch.equal(v, now[k]) for k, v in self.before.items() if not k.endswith("batches_tracked"))
            moved.append(not same)
            assert not torch.equal(self.head, pl_module.heads["shape"]["shapes"].linear.weight)

    fit(shards, tmp_path, module, ToySpy())
    assert moved == [False, False, True]


def test_a_part_frozen_for_good_needs_no_gradient(shards, tmp_path):
    module = toy_module(freeze={"backbone.net.layer1": None})
    trainer = fit(shards, tmp_path, module, max_steps=1)
    parts = list(module.backbone.net.layer1.parameters())
    assert not any(p.requires_grad for p in parts)
    kept = {id(p) for g in trainer.optimizers[0].param_groups for p in g["params"]}
    assert not kept & {id(p) for p in parts}


def test_an_unknown_part_to_freeze_is_named_with_its_neighbour(shards):
    cards = {n: m.card for n, m in toy_data(shards).manifests.items()}
    with pytest.raises(InputError, match=r"model\.freeze.*'backbon'.*'backbone'"):
        toy_module(freeze={"backbon": 10}).build(cards)
    with pytest.raises(InputError, match="layer_decay is 0"):
        toy_module(layer_decay=0.0)


# ------------------------------------------------------------------------------------------------- gradient probe


def test_the_probe_logs_what_each_task_alone_would_give(shards, tmp_path):
    module = toy_module()
    probe = GradientProbe(layer="conv1.6", every_steps=1)
    expected: dict[str, torch.Tensor] = {}

    class ToySpy(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 0:
                weight = pl_module.backbone.net.conv1[6].weight
                loss = pl_module.training_step(batch, batch_idx)
                (task,) = pl_module.tasks_of[batch.dataset]
                (expected[task],) = torch.autograd.grad(loss, weight)
                pl_module.means.take(reduce=lambda t: t)

    fit(shards, tmp_path, module, ToySpy(), probe, max_steps=1, accumulate_grad_batches=2)
    row = next(r for r in read_metrics(tmp_path / "metrics.csv") if "gradient/organ/norm" in r)
    organ, shape = expected["organ"].flatten(), expected["shape"].flatten()
    assert row["gradient/organ/norm"] == pytest.approx(float(organ.norm()), rel=1e-4)
    assert row["gradient/shape/norm"] == pytest.approx(float(shape.norm()), rel=1e-4)
    cosine = torch.nn.functional.cosine_similarity(organ, shape, dim=0)
    assert row["gradient/cosine/organ~shape"] == pytest.approx(float(cosine), abs=1e-4)


@pytest.mark.slow
def test_a_round_of_the_probe_that_is_open_at_a_crash_is_logged_after_it(shards, tmp_path):
    class ToyCrash(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch.micro_batch == 3:  # the second round has heard one task
                raise KeyError("crash")

    def run(folder, *callbacks):
        probe, writer = GradientProbe(layer="conv1.6", every_steps=2), CheckpointWriter(every_steps=1)
        fit(shards, folder, toy_module(), probe, writer, *callbacks, max_steps=4)

    run(tmp_path / "whole")
    with pytest.raises(KeyError, match="crash"):
        run(tmp_path / "crashed", ToyCrash())
    assert find_checkpoint(tmp_path / "crashed").step == 3
    run(tmp_path / "crashed")
    assert len([r for r in read_metrics(tmp_path / "whole/metrics.csv") if "gradient/organ/norm" in r]) == 2
    assert (tmp_path / "whole/metrics.csv").read_bytes() == (tmp_path / "crashed/metrics.csv").read_bytes()


def test_an_unknown_layer_is_named_with_its_neighbour(shards, tmp_path):
    with pytest.raises(InputError, match=r"layer 'layer2\.0\.conv9'.*layer2\.0\.conv"):
        fit(shards, tmp_path, toy_module(), GradientProbe(layer="layer2.0.conv9"))


# --------------------------------------------------------------------------------------------------- first batches


def test_a_mistake_in_the_last_task_shows_before_the_first_step(shards, tmp_path):
    module = toy_module()

    def broken(logits, value, target):
        raise IndexError("7 is too many")

    module.tasks["shape"].loss = broken
    with pytest.raises(RuntimeError, match=r"first batch of dataset 'shapes' \(task 'shape', samples .*7 is too many"):
        fit(shards, tmp_path, module)
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_first_batches_move_neither_weights_nor_statistics_nor_modes(shards, tmp_path):
    module = toy_module(norm="per_domain")

    class ToySpy(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            self.before = None

        def on_fit_start(self, trainer, pl_module):
            self.before = {k: v.clone() for k, v in pl_module.state_dict().items()}

        def on_train_batch_start(self, trainer, pl_module, *args):
            if self.before:
                assert all(torch.equal(v, self.before[k]) for k, v in pl_module.state_dict().items())
                assert all(m.training for m in pl_module.modules())
            self.before = None

    fit(shards, tmp_path, module, ToySpy(), max_steps=1)


def test_ranks_with_unlike_datasets_are_told_apart():
    def reduce(values, reduce_op):  # what two ranks would agree on, the other holding another dataset
        assert reduce_op == "max"
        other = values.clone()
        other[1] += 5
        other[3] -= 5
        return torch.maximum(values, other)

    trainer = SimpleNamespace(world_size=2, global_rank=0, strategy=SimpleNamespace(reduce=reduce))
    batch = SimpleNamespace(micro_batch=4, dataset="seg")
    with pytest.raises(RuntimeError, match=r"micro-batch 4 \(dataset 'seg'\)"):
        StepRecord().on_train_batch_start(trainer, SimpleNamespace(device="cpu"), batch, 0)


# ------------------------------------------------------------------------------------------------------------- EMA


@pytest.mark.slow
def test_the_average_follows_the_formula_and_is_what_is_scored_and_published(shards, tmp_path):
    module, seen = toy_module(), []

    class ToySpy(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            self.mine = pl_module.heads["shape"]["shapes"].linear.weight.detach().clone()

        def on_train_batch_end(self, trainer, pl_module, *args):
            n = trainer.global_step
            decay = min(0.5, (1 + n) / (10 + n))
            self.mine = decay * self.mine + (1 - decay) * pl_module.heads["shape"]["shapes"].linear.weight.detach()

        def on_validation_batch_start(self, trainer, pl_module, *args):
            seen.append(torch.dist(self.mine, pl_module.heads["shape"]["shapes"].linear.weight).item())

    fit(shards, tmp_path, module, ToySpy(), EMA(decay=0.5), limit_val_batches=1.0, val_check_interval=3)
    assert seen
    assert max(seen) < 1e-6
    state = torch.load(find_checkpoint(tmp_path).state, weights_only=True)
    name = "heads.shape.shapes.linear.weight"
    assert torch.equal(state["state_dict"][name], module.state_dict()[name])
    assert not torch.equal(state["ema"]["weights"][name], state["state_dict"][name])
    published = publish_run(tmp_path, f"local-dir:{tmp_path / 'published'}").folder
    net = inflate3d.create_model(f"local-dir:{published}", pretrained=True, num_classes=0)
    averaged = state["ema"]["weights"]["backbone.net.layer1.0.conv1.weight"]
    assert torch.equal(net.state_dict()["layer1.0.conv1.weight"], averaged)


@pytest.mark.slow
def test_a_checkpoint_from_within_a_validation_holds_the_weights_that_train(shards, tmp_path):
    module, trained = toy_module(), []

    class ToyStop(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            self.mine = {name: value.clone() for name, value in pl_module.state_dict().items()}

        def on_validation_batch_start(self, trainer, pl_module, *args):
            trained.append(self.mine)
            trainer.save_checkpoint(tmp_path / "within.ckpt")

    ema = EMA(decay=0.5)
    fit(shards, tmp_path, module, ToyStop(), ema, limit_val_batches=1, val_check_interval=3)
    state = torch.load(tmp_path / "within.ckpt", weights_only=True)
    assert all(torch.equal(value, state["state_dict"][name]) for name, value in trained[-1].items())
    name = "heads.shape.shapes.linear.weight"
    assert not torch.equal(state["ema"]["weights"][name], trained[-1][name])


@pytest.mark.slow
def test_the_average_goes_on_bit_for_bit(shards, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    writer = CheckpointWriter(every_steps=2)
    options = {"optimizer": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9), "warmup_steps": 9}
    fit(shards, whole, toy_module(**options), EMA(), writer, max_steps=4)
    fit(shards, halves, toy_module(**options), EMA(), CheckpointWriter(every_steps=2), max_steps=2)
    fit(shards, halves, toy_module(**options), EMA(), CheckpointWriter(every_steps=2), max_steps=4)
    one, other = (torch.load(find_checkpoint(f).state, weights_only=True)["ema"] for f in (whole, halves))
    assert one["updates"] == other["updates"] == 4
    assert all(torch.equal(v, other["weights"][k]) for k, v in one["weights"].items())


def test_an_average_of_sharded_weights_is_refused_in_one_line():
    trainer = SimpleNamespace(strategy=SimpleNamespace(stage=3))
    with pytest.raises(InputError, match="EMA cannot average weights that are sharded"):
        EMA().setup(trainer, None, "fit")


def test_the_config_of_a_backbone_hands_attention_and_statistics_to_the_net():
    options = {"attention": "joint", "statistics": "frame"}
    backbone = Backbone(BackboneConfig(name="test_vit", timm_kwargs={"img_size": 16}, **options))
    spec = backbone.net.net_spec.to_dict()
    assert {k: spec[k] for k in options} == options
    assert isinstance(backbone, nn.Module)
