"""Heads that begin as published ones, on the weight in the package: a whole segmenter goes on where it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import inflate3d
import pytest
import torch
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.evaluation.transfer.arms import arms_for
from inflate3d.evaluation.transfer.build import build_module
from inflate3d.evaluation.transfer.protocol import Protocol
from inflate3d.evaluation.transfer.target import Target
from inflate3d.models import BackboneConfig
from inflate3d.targets import ClassTarget, MaskTarget
from inflate3d.tasks.medical_segmentation import MedicalSegmentation
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import MultiTaskModule
from toy_batches import toy_card

SHIPPED = "tf_efficientnet_lite0_3d.v2"
OWN_CLASSES = ("background", "Anterior", "Posterior")


def built(
    wanted: dict[str, str],
    classes: tuple[str, ...] = OWN_CLASSES,
    *,
    segments: bool = True,
    **backbone: object,
) -> MultiTaskModule:
    target = MaskTarget(classes) if segments else ClassTarget(classes)
    card = replace(toy_card("mine", channels=("mri",), target=target), modality="mri")
    task = (MedicalSegmentation if segments else VolumeClassification)(datasets=["mine"])
    config = BackboneConfig(**{"name": SHIPPED, "pretrained": True, **backbone})  # type: ignore[arg-type]
    return MultiTaskModule(config, {"organ": task}, start_heads=wanted).build({"mine": card}).eval()


def decoder(module: MultiTaskModule) -> dict[str, torch.Tensor]:
    return module.heads["organ"]["mine"].state_dict()  # type: ignore[index]


@pytest.mark.slow
def test_a_run_begins_as_the_published_segmenter_answers() -> None:
    module, whole = built({"mine": "hippocampus"}), inflate3d.create_segmenter(SHIPPED, pretrained=True).eval()
    x = torch.randn(1, 1, 16, 32, 32)
    with torch.no_grad():
        features = module.backbone(x, domain="mine")
        torch.testing.assert_close(module.heads["organ"]["mine"](features), whole(x), rtol=1e-4, atol=1e-4)  # type: ignore[index]


@pytest.mark.slow
def test_of_other_classes_all_but_the_last_layer_is_taken_and_told(caplog: pytest.LogCaptureFixture) -> None:
    fresh, own = decoder(built({}, ("background", "b", "a"))), decoder(built({"mine": "hippocampus"}))
    found = decoder(built({"mine": "hippocampus"}, ("background", "b", "a")))
    assert (
        "begins as 'hippocampus' of tf_efficientnet_lite0_3d.v2; its target is another (a mask of 3 classes"
        in caplog.text
    )
    for key, value in found.items():
        assert torch.equal(value, fresh[key] if key.startswith("classify.") else own[key]), key
    assert not torch.equal(fresh["blocks.0.0.weight"], own["blocks.0.0.weight"])


@pytest.mark.parametrize(
    ("wanted", "options", "message"),
    [
        ({"yours": "hippocampus"}, {}, "model.start_heads: unknown head 'yours'"),
        ({"mine": "hippocampos"}, {}, "unknown head 'hippocampos'; close names: 'hippocampus'"),
        ({"mine": "hippocampus"}, {"segments": False}, "'hippocampus' is a UNetDecoder, the task's head a LinearHead"),
        ({"mine": "hippocampus"}, {"name": "test_resnet", "pretrained": False}, "heads come with published weights"),
    ],
)
def test_a_head_that_cannot_be_taken_is_named(wanted: dict[str, str], options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        built(wanted, **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_transfer_of_published_weights_may_take_their_decoder_and_baselines_begin_fresh(tmp_path: Path) -> None:
    build_shards(Toy(kind="volume_segmentation", num_train=6, num_val=2, size=16), tmp_path / "seg", progress=False)
    target = Target(
        tmp_path, Protocol("seg", "medical_segmentation", modes=("finetune",), sample={"patch_size": [16] * 3})
    )
    arms = {arm.name: arm for arm in arms_for([SHIPPED], target.card, head="hippocampus")}
    fresh = build_module(replace(arms[SHIPPED], head=""), target, seed=0).heads["medical_segmentation"]["seg"]
    begun = build_module(arms[SHIPPED], target, seed=0).heads["medical_segmentation"]["seg"]
    theirs = inflate3d.create_segmenter(SHIPPED, pretrained=True).state_dict()
    assert not arms["scratch"].head
    assert not arms["inflated"].head
    assert arms[SHIPPED].to_dict()["head"] == "hippocampus"
    for key, value in begun.state_dict().items():
        expected = fresh.state_dict()[key] if key.startswith("classify.") else theirs[f"decoder.{key}"]
        assert torch.equal(value, expected), key
