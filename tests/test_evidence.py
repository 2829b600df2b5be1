"""The evidence: a document of studies, arms and pretrainings, and what each of them becomes."""

import subprocess
from pathlib import Path

import pytest
import torch
from inflate3d import create_model, publish
from inflate3d.data.shard_writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.evaluation.transfer.build import build_module
from inflate3d.evaluation.transfer.evidence import STUDIES, pretrain, study_arm
from inflate3d.evaluation.transfer.protocol import Protocol
from inflate3d.evaluation.transfer.target import Target

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
        assert [study_arm(document, arm, card).name for arm in study["arms"]] == study["arms"]


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
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("ran again"))
    document = {"root": "shards", "pretraining": {"two tasks": {"config": "none.yaml", "seeds": 2}}}
    folders = [tmp_path / "pretraining" / f"two_tasks-{seed}" / "published" for seed in range(2)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    assert pretrain(document, "two tasks", tmp_path) == [f"local-dir:{folder}" for folder in folders]
    with pytest.raises(InputError, match="arms: unknown pretraining 'two taks'; close names: 'two tasks'"):
        pretrain(document, "two taks", tmp_path)
