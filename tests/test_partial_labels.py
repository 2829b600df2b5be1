"""Datasets that annotate unlike classes: one decoder for all, its loss, its metrics, and how a config says it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import inflate3d
import numpy as np
import pytest
import torch
from inflate3d.data.raw.readers import read_volume, write_nifti
from inflate3d.data.samples.views import make_stage
from inflate3d.data.shards.manifest import Manifest
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.evaluation.prediction.answerers import answerer_of
from inflate3d.evaluation.prediction.case_scores import CaseScores
from inflate3d.models import BackboneConfig
from inflate3d.models.publication.heads import label_names_of
from inflate3d.publishing.from_run import publish_run
from inflate3d.targets import ClassTarget, MaskTarget
from inflate3d.targets.mask import united
from inflate3d.tasks.medical_segmentation import MedicalSegmentation
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import DataModule, MultiTaskModule, write_config
from inflate3d.training.assignment import placed_heads
from inflate3d.training.checkpoints.store import write_checkpoint
from inflate3d.training.start_heads import take_published_heads
from safetensors.torch import load_file
from torch.nn import functional as F
from toy_batches import ToyEncoder, toy_batch, toy_card

OWN = {
    "abdomen": MaskTarget(("background", "liver", "spleen")),
    "kidneys": MaskTarget(("background", "kidney", "liver", "tumor"), annotated=("kidney", "liver")),
}
NAMES = ("background", "liver", "spleen", "kidney", "tumor")
CARDS = {name: toy_card(name, mask=target) for name, target in OWN.items()}


def built() -> MedicalSegmentation:
    torch.manual_seed(0)
    task = MedicalSegmentation(datasets=list(OWN), shared=True)
    task.bind(CARDS)
    task.build(ToyEncoder())
    return task


# ------------------------------------------------------------------------------------------------- united classes


def test_classes_are_united_by_name_in_the_order_in_which_they_appear():
    assert united(OWN) == {
        "abdomen": MaskTarget(NAMES, ("background", "liver", "spleen")),
        "kidneys": MaskTarget(NAMES, ("background", "liver", "kidney")),
    }
    same = {"a": MaskTarget(("background", "x", "y")), "b": MaskTarget(("other", "y", "x"))}
    assert united(same) == dict.fromkeys("ab", MaskTarget(("background", "x", "y")))
    assert united({"a": OWN["kidneys"]}) == {"a": replace(OWN["kidneys"], annotated=("background", "kidney", "liver"))}


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ("Left Kidney", "left_kidney", "'Left Kidney' of a and 'left_kidney' of b differ in their spelling alone"),
        ("Left Kidney", "left_kidney", r"data\.datasets\.b\.targets, \{mask: \{names: \[\.\.\.\]\}\}"),
        ("straße", "STRASSE", "differ in their spelling alone"),
        ("clear", "air", "'clear' is the background of b, and a class of another dataset"),
    ],
)
def test_names_that_may_be_one_class_or_two_are_refused(one: str, other: str, words: str):
    background = "clear" if one == "clear" else "background"
    with pytest.raises(InputError, match=words):
        united({"a": MaskTarget(("background", one)), "b": MaskTarget((background, other))})


def test_alike_names_of_one_dataset_are_its_own_affair():
    own = MaskTarget(("background", "L 1", "L1"))
    assert united({"a": own, "b": MaskTarget(("background", "L1"))})["a"] == own


def test_one_decoder_tells_at_most_256_classes_apart():
    many = {str(i): MaskTarget(("background", *(f"{i} {k}" for k in range(200)))) for i in range(2)}
    with pytest.raises(InputError, match="401 classes together; one decoder tells at most 256 apart"):
        united(many)


# --------------------------------------------------------------------------------------------- the shared decoder


def test_there_is_one_decoder_and_it_answers_for_every_dataset():
    task = built()
    assert list(task.modules()) == ["shared"]
    heads = placed_heads({"organs": task})
    assert {name: head.target for name, head in heads.items()} == united(OWN)
    assert heads["abdomen"].module is heads["kidneys"].module is task.modules()["shared"]
    assert heads["kidneys"].label_names == ("background", "kidney", "liver", "tumor")
    answer = task.predict(ToyEncoder(), toy_batch(CARDS["abdomen"]))
    assert answer.tensor.shape[1] == len(NAMES)
    with pytest.raises(InputError, match="a dataset is called 'shared', as the decoder would; rename it"):
        MedicalSegmentation(datasets=["shared"], shared=True)
    nothing = toy_card("kidneys", mask=MaskTarget(("background", "x"), ("background",)))
    with pytest.raises(InputError, match="nothing but background is annotated in kidneys"):
        MedicalSegmentation(datasets=list(OWN), shared=True).bind({**CARDS, "kidneys": nothing})


def test_the_loss_is_the_marginal_one_over_the_classes_that_the_dataset_annotates():
    task, batch = built(), toy_batch(CARDS["kidneys"])
    p = task.predict(ToyEncoder(), batch).tensor
    hidden = p[:, 0] + p[:, 2] + p[:, 4]  # background, spleen, tumor
    own = batch.targets["mask"]  # of background, kidney, liver, tumor
    of_truth = torch.stack([hidden, p[:, 3], p[:, 1], hidden], 1).gather(1, own[:, None])
    dice = []
    for k, label in ((1, 2), (3, 1)):
        t = (own == label).float()
        dice.append((2 * (p[:, k] * t).sum() + 1e-5) / (p[:, k].sum() + t.sum() + 1e-5))
    values = task.step(ToyEncoder(), batch, seed=0)
    torch.testing.assert_close(values["cross_entropy"], -of_truth.log().mean().detach())
    torch.testing.assert_close(values["dice_loss"], 1 - torch.stack(dice).mean().detach())


def test_dice_is_of_what_the_dataset_annotates_by_the_names_of_all():
    task, batch = built(), toy_batch(CARDS["kidneys"])
    value = task.value(batch)
    assert torch.equal(value, torch.tensor([0, 3, 1, 4])[batch.targets["mask"]])
    metrics = task.metrics("kidneys")
    guess = torch.where(value == 3, 2, value)  # every kidney voxel is said to be spleen
    metrics.update(F.one_hot(guess, len(NAMES)).movedim(-1, 1).float(), value)
    assert {k: float(v) for k, v in metrics.compute().items()} == {"dice": 0.5, "dice_liver": 1, "dice_kidney": 0}


def test_a_decoder_of_its_own_answers_as_a_shared_one_of_a_single_dataset():
    losses = []
    for shared in (False, True):
        torch.manual_seed(0)
        task = MedicalSegmentation(datasets=["abdomen"], shared=shared)
        task.bind(CARDS)
        task.build(ToyEncoder())
        losses.append(task.step(ToyEncoder(), toy_batch(CARDS["abdomen"]), seed=0)["loss"])
    assert torch.equal(*losses)


# ---------------------------------------------------------------------------------------- what a config restates


def test_a_config_restates_what_was_annotated_and_names_classes_that_occur_nowhere():
    card = CARDS["abdomen"]
    hidden = card.restated({"mask": {"annotated": ["liver"]}}, where="d")
    assert hidden.targets["mask"] == MaskTarget(("background", "liver", "spleen"), ("liver",))
    absent = card.restated({"mask": {"names": ["background", "Liver", "spleen", "kidney"]}}, where="d")
    whole = united({"a": absent.targets["mask"], "b": MaskTarget(("background", "kidney"))})
    assert whole["a"].unannotated == ()  # the kidney was looked for, and is nowhere
    assert whole["b"].annotated == ("background", "kidney")
    assert card.restated({}, where="d") == card


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ("mask", "data.x is 'mask'; expected targets by name: mask"),
        ({"msk": {}}, "data.x: unknown target 'msk'; close names: 'mask'"),
        ({"mask": {"anotated": ["liver"]}}, "data.x.mask: unknown field 'anotated'; close names: 'annotated'"),
        ({"mask": {"type": "value"}}, "data.x.mask: unknown field 'type'"),
        ({"mask": ["liver"]}, "data.x.mask is ['liver']; expected fields of the target: annotated, ignored, names,"),
        ({"mask": {"annotated": "liver"}}, "data.x.mask.annotated is 'liver'; expected a list that names one at least"),
        ({"mask": {"annotated": []}}, "data.x.mask.annotated is []; expected a list that names one at least"),
        ({"mask": {"annotated": ["kidney"]}}, "data.x.mask: annotated: unknown class 'kidney'"),
        (
            {"mask": {"names": ["background", "liver"]}},
            "names has 2 names; the shards hold 3 classes: background, liver",
        ),
    ],
)
def test_what_cannot_be_restated_is_refused(targets: Any, words: str):
    with pytest.raises(InputError) as caught:
        CARDS["abdomen"].restated(targets, where="data.x")
    assert words in str(caught.value)


def test_a_run_sees_the_card_as_the_config_restates_it(tmp_path: Path):
    build_shards(Toy(kind="volume_segmentation", num_train=2, num_val=1, size=16), tmp_path / "a", progress=False)
    names = Manifest.load(tmp_path / "a").card.targets["mask"].names
    datasets: Any = {"a": {"batch_size": 1, "targets": {"mask": {"annotated": [names[1]]}}}}
    data = DataModule(str(tmp_path), datasets, seed=0).prepare()
    assert data.manifests["a"].card.targets["mask"] == MaskTarget(names, (names[1],))
    plain = DataModule(str(tmp_path), {"a": {"batch_size": 1}}, seed=0).prepare()
    with pytest.raises(InputError, match="shards of a: card: targets"):
        data.load_state_dict(plain.state_dict())
    datasets["a"]["targets"]["mask"]["annotated"] = ["nothing"]
    with pytest.raises(InputError, match=r"data\.datasets\.a\.targets\.mask: annotated: unknown class 'nothing'"):
        DataModule(str(tmp_path), datasets, seed=0).prepare()


def test_no_patch_is_chosen_by_voxels_of_a_class_that_was_not_looked_for():
    members = {"image": np.zeros((1, 16, 16, 16), np.float32), "mask": np.zeros((16, 16, 16), np.uint8), "json": {}}
    members["mask"][0, 0, 0], members["mask"][15, 15, 15] = 1, 2
    found = []
    for annotated in ((), ("background", "liver")):
        card = toy_card(mask=replace(OWN["abdomen"], annotated=annotated))
        stage = make_stage(card, {"patch_size": [4, 4, 4], "foreground": 1.0}, training=True)
        found.append({int(stage("k", members, seed).targets["mask"].max()) for seed in range(20)})
    assert found == [{1, 2}, {1}]


# ------------------------------------------------------------------------------------------- published, predicted


def test_label_files_are_scored_by_their_own_labels_for_what_was_annotated(tmp_path: Path):
    truth, guess = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    truth[0], truth[1] = 1, 2  # kidney, liver as their dataset counts them
    guess[0, :2], guess[1], guess[2] = 3, 1, 2  # half of the kidney, the liver, and a spleen where nobody looked
    write_nifti(tmp_path / "c.nii", truth, np.eye(4))
    write_nifti(tmp_path / "image.nii", truth.astype(np.int16), np.eye(4))
    scores = CaseScores(
        tmp_path / "c.nii",
        ["c"],
        united(OWN)["kidneys"],
        tmp_path / "dice.csv",
        label_names=("background", "kidney", "liver", "tumor"),
    )
    scores.add("c", guess.T, read_volume(tmp_path / "image.nii", orientation=None))
    scores.close()
    header, row, *_ = (tmp_path / "dice.csv").read_text().splitlines()
    assert header.startswith("key,dice,dice_liver,dice_kidney,hd95_mm,hd95_mm_liver,hd95_mm_kidney,")
    assert row.startswith(f"c,{(1 + 2 / 3) / 2:.6f},1.000000,{2 / 3:.6f},")


def made() -> MultiTaskModule:
    task = MedicalSegmentation(datasets=list(OWN), shared=True)
    return MultiTaskModule(BackboneConfig("test_resnet", norm="group"), {"organs": task}).build(CARDS).eval()


def test_a_shared_decoder_begins_as_one_published_head():
    heads, wanted = placed_heads({"organs": built()}), dict.fromkeys(OWN, "hippocampus")
    with pytest.raises(InputError, match=r"model\.start_heads\.kidneys: abdomen and kidneys share one head"):
        take_published_heads(heads, wanted, BackboneConfig("test_resnet"))


def test_the_shared_decoder_takes_part_in_every_micro_batch_and_learns_from_its_own():
    shapes = toy_card("shapes", label=ClassTarget(("a", "b", "c")))
    tasks = {
        "organs": MedicalSegmentation(datasets=list(OWN), shared=True),
        "shape": VolumeClassification(datasets=["shapes"]),
    }
    module = MultiTaskModule(BackboneConfig("test_resnet"), tasks).build({**CARDS, "shapes": shapes}).eval()
    for card in (*CARDS.values(), shapes):
        module.zero_grad()
        batch = toy_batch(card, batch=1, size=(8, 16, 16))
        loss = module.training_step(batch, 0)
        task = tasks["shape" if card is shapes else "organs"]
        assert torch.equal(loss, task.step(module.backbone, batch, seed=0)["loss"])
        loss.backward()
        gradients = [p.grad for p in module.heads["organs"].parameters()]
        assert all(g is not None for g in gradients)
        assert any(bool(g.any()) for g in gradients) == (card is not shapes)
    alike = {**CARDS, "shapes": shapes, "kidneys": toy_card("kidneys", mask=MaskTarget(("background", "Liver")))}
    with pytest.raises(InputError, match=r"^model\.tasks\.organs\.init_args\.datasets: 'liver' of abdomen and 'Liver'"):
        MultiTaskModule(BackboneConfig("test_resnet"), tasks).build(alike)


@pytest.mark.slow
def test_a_published_head_answers_for_all_classes_and_says_which_dataset_annotated_what(tmp_path: Path):
    run, module = tmp_path / "run", made()
    task = {"class_path": "MedicalSegmentation", "init_args": {"datasets": list(OWN), "shared": True}}
    datasets = {name: {"batch_size": 1, "sample": {"patch_size": [16, 32, 32]}} for name in OWN}
    backbone = {"name": "test_resnet", "norm": "group"}
    assert {key.split(".")[2] for key in module.state_dict() if key.startswith("heads.")} == {"shared"}
    write_config(run, {"model": {"backbone": backbone, "tasks": {"organs": task}}, "data": {"datasets": datasets}})
    state: dict[str, object] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(state)
    write_checkpoint(run / "checkpoints", 7, lambda p: torch.save(state, p), score=0.5, metrics={"val/score": 0.5})
    folder = publish_run(run, str(tmp_path / "out"), with_heads=True).folder
    assert folder is not None
    config = json.loads((folder / "config.json").read_text())
    assert "tensors" not in config["heads"]["abdomen"]
    assert config["heads"]["kidneys"]["tensors"] == "abdomen"
    assert {key.split(".")[0] for key in load_file(folder / "heads.safetensors")} == {"abdomen"}
    card = (folder / "README.md").read_text()
    assert (
        f"head `kidneys` (volume): a mask of 5 classes: {', '.join(NAMES)} (annotated: background, liver, kidney)"
        in card
    )
    x = torch.randn(1, 1, 16, 32, 32)
    for name in OWN:
        whole = inflate3d.create_segmenter(f"local-dir:{folder}", pretrained=True, head=name).eval()
        assert whole.label_names == list(NAMES)
        with torch.no_grad():
            expected = module.tasks["organs"].head_of(name)(module.backbone(x, domain=name))
            torch.testing.assert_close(whole(x.expand(-1, 3, -1, -1, -1)), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="the head's label_names: unknown class 'livr'; close names: 'liver'"):
        label_names_of({**config["heads"]["kidneys"], "label_names": ["background", "livr"]})
    for model in (run, folder):
        answering = answerer_of(str(model)).heads["kidneys"]
        assert answering.label_names == ("background", "kidney", "liver", "tumor")
        assert answering.target == united(OWN)["kidneys"]
