"""What a transfer compares: the arms that models bring, and mistakes told before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from inflate3d.cli.main import main
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.evaluation.transfer.arms import arms_for, is_baseline
from inflate3d.evaluation.transfer.build import build_module
from inflate3d.evaluation.transfer.protocol import Protocol
from inflate3d.evaluation.transfer.study import run_transfer
from inflate3d.evaluation.transfer.target import Target
from inflate3d.models import create_model
from inflate3d.publishing import publish

SHAPES = Protocol("shapes", "volume_classification", modes=("probe",), fractions=(0.5,), seeds=(0,), val_fraction=0.2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    build_shards(Toy(kind="volume_classification", num_train=30, num_val=9, size=16), root / "shapes", progress=False)
    return root


def test_every_architecture_brings_its_two_baselines(root):
    card = Target(root, SHAPES).card
    arms = arms_for(["test_resnet"], card, pretrained={"": "weights.safetensors"})
    assert [a.name for a in arms] == ["scratch", "inflated"]
    scratch, inflated = (a.backbone for a in arms)
    assert (scratch.pretrained, scratch.inflation.taps.name) == (False, "random")
    assert (inflated.pretrained, inflated.inflation.taps.name) == (True, "center")
    assert inflated.timm_kwargs["pretrained_cfg_overlay"] == {"file": "weights.safetensors"}
    assert scratch.inflation.plan == inflated.inflation.plan
    names = [a.name for a in arms_for(["test_resnet", "test_vit"], card)]
    assert names == ["scratch test_resnet", "inflated test_resnet", "scratch test_vit", "inflated test_vit"]
    assert all(is_baseline(name) for name in names)


def test_published_weights_bring_their_plan_to_their_baselines(root, tmp_path):
    net = create_model("test_resnet", in_chans=1, plan="i3d", inflation="mean", num_classes=0)
    publish(net, f"local-dir:{tmp_path / 'mine'}")
    target = Target(root, SHAPES)
    scratch, inflated, mine = arms_for([f"local-dir:{tmp_path / 'mine'}"], target.card)
    assert [a.name for a in (scratch, inflated, mine)] == ["scratch", "inflated", "mine"]
    assert scratch.backbone.inflation.plan == inflated.backbone.inflation.plan == net.plan
    assert (inflated.backbone.name, inflated.backbone.inflation.taps.name) == ("test_resnet", "mean")
    backbone = build_module(mine, target, seed=0).backbone
    assert torch.equal(backbone.net.layer1[0].conv1.weight, net.layer1[0].conv1.weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "volume_clasification"], "unknown task 'volume_clasification'"),
        (
            ["--task", "medical_segmentation"],
            "--task medical_segmentation: MedicalSegmentation needs a MaskTarget; targets of",
        ),
        (["--task", "volume_classification", "--modes", "prob"], "--modes: unknown mode 'prob'; close names: 'probe'"),
        (["--task", "volume_classification", "--fractions", "1.5"], "--fractions: 1.5 is not a share of the labels"),
        (["--task", "volume_classification", "--metric", "dice"], "--metric: unknown metric 'dice'; allowed"),
        (["--task", "volume_classification", "--pretrained", "x=none.st"], "--pretrained x=none.st: no file 'none.st'"),
        (["--task", "volume_classification", "--part", "3/2"], "part is 3/2; expected I/N"),
        (["--task", "volume_classification", "--sample", "{sizes: [1, 1, 1]}"], "unknown key 'sizes'"),
    ],
)
def test_mistakes_are_answered_by_a_line_that_names_them(root, tmp_path, capsys, arguments, message):
    command = ["transfer", "test_resnet", "--root", str(root), "--dataset", "shapes", "--output", str(tmp_path)]
    assert main([*command, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_start_that_cannot_be_had_is_told_before_anything_is_computed(root, tmp_path):
    target = Target(root, SHAPES)
    arms = arms_for(["test_resnet"], target.card, pretrained={"": str(tmp_path / "gone.safetensors")})
    with pytest.raises(InputError, match=r"2D weights of 'test_resnet' cannot be .*--pretrained weights\.safetensors"):
        run_transfer(arms, target, tmp_path / "out", report=lambda *_: pytest.fail("a cell was run"))
