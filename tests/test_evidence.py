"""The evidence: a document of studies, arms and pretrainings, and what each of them becomes."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from inflate3d import create_model, create_segmenter, publish
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.evaluation.transfer.build import build_module
from inflate3d.evaluation.transfer.protocol import Protocol
from inflate3d.evaluation.transfer.target import Target
from inflate3d.reports import evidence, lite_weights
from inflate3d.reports.evidence import (
    STUDIES,
    Sitting,
    SittingOver,
    fit_within,
    main,
    model_arms,
    pretrain,
    study_arm,
)
from safetensors.torch import load_file

SHAPES = Protocol("shapes", "volume_classification", val_fraction=0.2)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    build_shards(Toy(kind="volume_classification", num_train=30, num_val=9, size=16), root / "shapes", progress=False)
    return root


def test_every_study_of_the_evidence_names_arms_and_a_protocol_that_exist(root):
    import yaml

    document = yaml.safe_load(STUDIES.read_text(encoding="utf-8"))
    card = Target(root, SHAPES).card
    for study in document["studies"].values():
        assert Protocol.from_dict(study["protocol"]).dataset in document["datasets"]
        assert all(timm.is_model(name) for name in study.get("models", ()))
        arms = study.get("arms", [])
        assert [study_arm(document, arm, card).name for arm in arms] == arms


def test_a_study_of_models_has_both_baselines_of_each_and_names_a_missing_file(root):
    card, study = (
        Target(root, SHAPES).card,
        {"models": {"resnet18": None, "resnet10t": "lost.safetensors"}, "backbone": {}},
    )
    document = {"backbone": {"plan": "isotropic"}, "studies": {"table": study}}
    with pytest.raises(InputError, match=r"study table: no file 'lost.safetensors' of 2D weights for resnet10t"):
        model_arms(document, "table", card)
    study["models"]["resnet10t"] = None
    study["backbone"] = {"inflation": "mean"}
    arms = model_arms(document, "table", card)
    assert [a.name for a in arms] == [
        "scratch resnet18",
        "inflated resnet18",
        "scratch resnet10t",
        "inflated resnet10t",
    ]
    assert [a.backbone.inflation.taps.name for a in arms] == ["random", "mean"] * 2


def test_weights_under_other_names_are_taken_in_order_and_only_the_very_file(tmp_path, monkeypatch):
    net = timm.create_model("test_resnet", num_classes=3)
    torch.save({f"_{i}": tensor for i, tensor in enumerate(net.state_dict().values())}, tmp_path / "net.pth")
    sha256 = hashlib.sha256((tmp_path / "net.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(timm, "create_model", lambda _: net)
    monkeypatch.setattr(lite_weights, "FILES", {"test_resnet": ("net.pth", sha256)})
    (written,) = lite_weights.convert(tmp_path, tmp_path / "out")
    tensors = load_file(written)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in net.state_dict().items())
    (tmp_path / "net.pth").write_bytes(b"something else")
    with pytest.raises(InputError, match=r"net.pth: sha256 .*, expected .*; install the package again"):
        lite_weights.convert(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="installs it"):
        lite_weights.convert(tmp_path / "none", tmp_path / "out")
    with pytest.raises(InputError, match=r"a is \(2,\) where b is \(3,\); this is another net"):
        lite_weights.in_order({"a": torch.zeros(2)}, {"b": torch.zeros(3)})


@pytest.mark.slow
def test_an_arm_of_several_pretrainings_takes_one_a_seed(root, tmp_path):
    for seed in range(2):
        torch.manual_seed(seed)
        publish(create_model("test_resnet", in_chans=1, num_classes=0), f"local-dir:{tmp_path / str(seed)}")
    runs = [f"local-dir:{tmp_path / str(seed)}" for seed in range(2)]
    target = Target(root, SHAPES)
    document = {"arms": {"joint": {"pretraining": "joint"}}}
    arm = study_arm(document, "joint", target.card, runs=runs)
    assert arm.to_dict()["runs"] == runs
    stems = [build_module(arm, target, seed=seed).backbone.net.layer1[0].conv1.weight for seed in range(3)]
    assert torch.equal(stems[0], stems[2])
    assert not torch.equal(stems[0], stems[1])


def test_a_pretraining_that_is_finished_is_not_run_again_and_an_unknown_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("ran again"))
    document = {"root": "shards", "pretraining": {"two tasks": {"config": "none.yaml", "seeds": 2}}}
    folders = [tmp_path / "pretraining" / f"two_tasks-{seed}" / "published" for seed in range(2)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    assert pretrain(document, "two tasks", tmp_path, sitting=Sitting()) == [f"local-dir:{folder}" for folder in folders]
    with pytest.raises(InputError, match="arms: unknown pretraining 'two taks'; close names: 'two tasks'"):
        pretrain(document, "two taks", tmp_path, sitting=Sitting())


def test_options_reach_the_command_line_whole_and_the_run_is_published_as_is_said(tmp_path, monkeypatch):
    ran, published = [], []
    monkeypatch.setattr(evidence, "fit_within", lambda command, _: ran.append(command))
    monkeypatch.setattr(evidence, "publish_run", lambda *given, **more: published.append((*given, more)))
    anchor = {"class_path": "Distillation", "init_args": {"datasets": ["a" * 90, "b"], "loss_weight": 2.0}}
    options = {"model.tasks.anchor": anchor, "model.tasks.other": None, "trainer.max_steps": 7}
    entry = {"config": "x.yaml", "seeds": 1, "options": options, "publishing": {"which": "last"}}
    document = {"root": "shards", "pretraining": {"anchored": entry}}
    pretrain(document, "anchored", tmp_path, sitting=Sitting())
    given = zip(ran[0][-6::2], ran[0][-5::2], strict=True)
    assert {name.removeprefix("--"): yaml.safe_load(text) for name, text in given} == options
    run = tmp_path / "pretraining" / "anchored-0"
    assert published == [(run, f"local-dir:{run / 'published'}", {"which": "last"})]


@pytest.mark.slow
def test_a_pretraining_is_trained_and_published_with_its_heads(tmp_path):
    toy = {"class_path": "Toy", "init_args": {"kind": "volume_segmentation", "num_train": 4, "num_val": 2, "size": 16}}
    seg = {"batch_size": 2, "sample": {"patch_size": [16, 16, 16]}, "build": toy}
    config = {
        "trainer": {"accelerator": "cpu", "max_steps": 1, "enable_progress_bar": False},
        "model": {
            "backbone": {"name": "test_resnet", "pretrained": False},
            "tasks": {"cut": {"class_path": "MedicalSegmentation", "init_args": {"datasets": ["seg"]}}},
        },
        "data": {"num_workers": 0, "datasets": {"seg": seg}},
    }
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(config))
    entry = {"config": str(tmp_path / "toy.yaml"), "seeds": 1, "publishing": {"which": "last", "with_heads": True}}
    document = {"root": str(tmp_path / "shards"), "pretraining": {"toy": entry}}
    (address,) = pretrain(document, "toy", tmp_path / "out", sitting=Sitting())
    assert create_segmenter(address, pretrained=True, head="seg").label_names[0] == "background"
    assert pretrain(document, "toy", tmp_path / "out", sitting=Sitting()) == [address]


@pytest.mark.slow
def test_a_sitting_ends_after_the_current_cell_and_the_next_goes_on(root, tmp_path, monkeypatch, capsys):
    protocol = {"dataset": "shapes", "task": "volume_classification", "val_fraction": 0.2, "modes": ["knn"]}
    study = {"protocol": {**protocol, "fractions": [1.0], "seeds": [0, 1, 2]}, "arms": ["plain"]}
    document = {"root": str(root), "model": "test_resnet", "backbone": {}, "studies": {"toy": study}}
    (tmp_path / "toy.json").write_text(json.dumps({**document, "arms": {"plain": {"pretrained": False}}}))
    command = ["--file", str(tmp_path / "toy.json"), "--output", str(tmp_path / "out"), "--minutes", "1"]
    asked = iter([False, True] * 2)
    monkeypatch.setattr(Sitting, "is_over", lambda _: next(asked, False))
    counts = []
    for code in (75, 75, 0):
        assert main(command) == code
        assert ("The same command goes on" in capsys.readouterr().out) == (code == 75)
        counts.append(json.loads((tmp_path / "out" / "toy" / "transfer.json").read_text())["cells"]["finished"])
    assert counts == [1, 2, 3]


def test_a_fit_is_stopped_when_the_time_is_up_and_its_failure_is_one():
    fit_within([sys.executable, "-c", "pass"], Sitting())
    with pytest.raises(SittingOver):
        fit_within([sys.executable, "-c", "import time; time.sleep(600)"], Sitting(1e-3))
    with pytest.raises(SittingOver):
        fit_within([sys.executable, "-c", "raise SystemExit('ran')"], Sitting(0))
    with pytest.raises(subprocess.CalledProcessError):
        fit_within([sys.executable, "-c", "raise SystemExit(3)"], Sitting())
