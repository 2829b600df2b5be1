"""Masks whose labels are told as regions, and labels that count for nothing: from dataset.json to a label map."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import inflate3d
import numpy as np
import pytest
import torch
from inflate3d.contracts import AbstractDataset, AbstractTarget, Case, RawSample
from inflate3d.data.raw.labels import chosen
from inflate3d.data.raw.readers import read_volume, write_nifti
from inflate3d.data.raw.stated_labels import stated_labels
from inflate3d.data.raw.volumes import measure_window
from inflate3d.data.samples.views import make_stage
from inflate3d.datasets.brats import BraTS
from inflate3d.datasets.nnunet_raw import NnunetRaw
from inflate3d.errors import InputError
from inflate3d.evaluation.prediction.case_scores import CaseScores
from inflate3d.nn.metrics import VolumeDice
from inflate3d.portable.part import part_of
from inflate3d.targets.mask import MaskTarget, Region, united
from inflate3d.tasks.medical_segmentation import MedicalSegmentation
from torch.nn import functional as F
from toy_batches import ToyEncoder, toy_batch, toy_card

TABLE = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing": 3, "ignore": 4}
TUMOR = stated_labels(TABLE, [1, 2, 3], where="dataset.json")
INSIDE = {"whole_tumor": (1, 2, 3), "tumor_core": (2, 3), "enhancing": (3,)}
IGNORED = MaskTarget(("background", "a", "unknown", "b"), ignored=("unknown",))


class ToyCT(AbstractDataset):
    """One case: ten times as bright as its label, and where nothing is known 9999."""

    card = toy_card(mask=TUMOR)

    def cases(self) -> list[Case]:
        return [Case("case", "train", 0)]

    def read(self, case: Case) -> RawSample:
        mask = np.repeat(np.arange(5, dtype=np.uint8), 40).reshape(5, 5, 8)
        return RawSample(np.where(mask == 4, 9999, 10 * mask).astype(np.int16)[None], targets={"mask": mask})

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        return {}


def bound(target: MaskTarget, **options: Any) -> MedicalSegmentation:
    torch.manual_seed(0)
    task = MedicalSegmentation(datasets=["toy"], **options)
    task.bind({"toy": toy_card(mask=target)})
    task.build(ToyEncoder())
    return task


# --------------------------------------------------------------------------------------------- what a file states


def test_nnunets_table_of_regions_names_labels_regions_and_what_is_ignored() -> None:
    names = ("background", "label 1", "label 2", "enhancing", "ignore")
    regions = (
        Region("whole tumor", ("label 1", "label 2", "enhancing"), "label 1"),
        Region("tumor core", ("label 2", "enhancing"), "label 2"),
        Region("enhancing", ("enhancing",), "enhancing"),
    )
    assert MaskTarget(names, ignored=("ignore",), regions=regions) == TUMOR
    assert TUMOR.answers == ("whole tumor", "tumor core", "enhancing")
    assert stated_labels({"background": 0, "a": 1, "ignore": 2}, where="x") == MaskTarget(
        ("background", "a", "ignore"), ignored=("ignore",)
    )


def test_a_target_comes_back_from_json_and_says_nothing_new_where_there_is_nothing_new() -> None:
    for target in (TUMOR, IGNORED):
        # A publication's config.json sorts its keys, so the order of regions must not be one of keys.
        assert AbstractTarget.from_dict(json.loads(json.dumps(target.to_dict(), sort_keys=True))) == target
    plain = MaskTarget(("background", "a"), annotated=("a",))
    assert plain.to_dict() == {"type": "mask", "names": ("background", "a"), "annotated": ("a",)}


@pytest.mark.parametrize(
    ("table", "order", "words"),
    [
        (
            TABLE,
            None,
            "regions_class_order is None; expected the label that is written for each of the 3 regions whole",
        ),
        (TABLE, [1, 2], "expected the label that is written for each of the 3 regions"),
        (TABLE, [1, 2, 2], "what is written for 'enhancing' is no label of it"),
        (TABLE, [3, 2, 3], "a voxel of 'label 1' would be written as 'enhancing', which is not in the same regions"),
        ({"background": 0, "a": [1, 2], "b": [2, 3]}, [1, 3], "'label 2' would be written as 'label 3'"),
        ({"background": 0, "a": [1, 3], "b": 3}, [1, 3], "without gaps"),
        ({"background": 0, "a": 1, "b": 1}, None, "label 1 is 'a' and 'b'; a label has one name"),
        ({"background": 0, "a": 1, "IGNORE": 2}, None, "label 'IGNORE': nnU-Net's is 'ignore'"),
        ({"background": 0, "a": [1, 2.5]}, None, "label 'a' has index 2.5"),
        ({"ignore": 0, "a": 1}, None, "'ignore' is the background"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_by_its_entry(table: dict[str, Any], order: Any, words: str) -> None:
    with pytest.raises(InputError, match=r"^dataset\.json: ") as caught:
        stated_labels(table, order, where="dataset.json")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ignored": ["c"]}, "data.x.mask: ignored: unknown class 'c'"),
        ({"regions": [{"name": "r", "labels": ["a", "c"]}]}, "region 'r': unknown label 'c'"),
        ({"regions": [{"name": "r", "labels": ["background"]}]}, "region 'r': unknown label 'background'"),
        ({"regions": [{"name": "r", "labels": ["a"], "writen": "a"}]}, "region 'r': unknown key 'writen'; close names"),
        ({"regions": [{"name": "r", "labels": ["a", "b"]}]}, "which one is written for it? Say written: one of a, b"),
        (
            {"regions": [{"name": "r", "labels": ["a"], "written": "b"}]},
            "written is 'b'; expected one of its labels: a",
        ),
        ({"regions": {"r": ["a"]}}, "data.x.mask.regions is {'r': ['a']}; expected a list that names one at least"),
        ({"regions": ["r"]}, "region 'r'; expected {name: NAME, labels: [LABEL, ...], written: LABEL}"),
        ({"regions": [{"name": "r", "labels": ["a"]}] * 2}, "which one is written for it?"),
        (
            {"regions": [{"name": "r", "labels": ["a"]}], "annotated": ["a"]},
            "regions and annotated together: a region is known where all of its labels are; drop one",
        ),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused_by_its_key(changes: dict[str, Any], words: str) -> None:
    card = toy_card(mask=MaskTarget(("background", "a", "b")))
    with pytest.raises(InputError) as caught:
        card.restated({"mask": changes}, where="data.x")
    assert words in str(caught.value)


def test_a_config_makes_regions_of_labels_that_a_set_names_one_by_one() -> None:
    card = toy_card(mask=MaskTarget(("background", "edema", "core", "vessel")))
    told = [{"name": "whole", "labels": ["edema", "core"]}, {"name": "core", "labels": ["core"]}]
    found = card.restated({"mask": {"regions": told, "ignored": ["vessel"]}}, where="d").targets["mask"]
    regions = (Region("whole", ("edema", "core"), "edema"), Region("core", ("core",), "core"))
    assert found == MaskTarget(("background", "edema", "core", "vessel"), (), ("vessel",), regions)


def test_brats_tells_its_regions_where_asked(tmp_path: Path) -> None:
    target = BraTS(tmp_path, regions=True).card.targets["mask"]
    assert target.names == BraTS(tmp_path).card.targets["mask"].names
    assert target.scored == {"whole tumor": (2, 1, 3), "tumor core": (1, 3), "enhancing tumor": (3,)}
    late = BraTS(tmp_path, release="2024", regions=True).card.targets["mask"]
    assert late.answers == (*target.answers, "resection cavity")
    with pytest.raises(InputError, match="labels makes classes, and regions are of the set's own labels"):
        BraTS(tmp_path, regions=True, labels={"tumor": [1, 2, 4]})


def test_classes_that_a_build_asks_for_take_the_place_of_regions_and_keep_what_is_ignored() -> None:
    made = chosen(TUMOR, {"tumor": [1, "label 2", 3]}, where="set")
    assert made.target == MaskTarget(("background", "tumor", "ignore"), ignored=("ignore",))
    assert dict(made.index_of) == {0: 0, 1: 1, 2: 1, 3: 1, 4: 2}
    taken = chosen(TUMOR, {"tumor": [1, 2, 3], "unknown": "ignore"}, where="set")
    assert taken.target == MaskTarget(("background", "tumor", "unknown"))
    hidden = chosen(TUMOR, {"tumor": [1, 2, 3], "vessel": []}, where="set")
    assert hidden.target.unannotated == (2,)
    assert hidden.target.ignored == ("ignore",)


# ---------------------------------------------------------------------------------------------- losses and scores


def test_regions_are_trained_by_their_sigmoids_where_nothing_is_ignored() -> None:
    task, batch = bound(TUMOR, dice_weight=0.5), toy_batch(toy_card(mask=TUMOR))
    truth, known = batch.targets["mask"], batch.targets["mask"] != 4
    logits = task.logits(ToyEncoder(), batch)
    assert logits.shape[1] == 3
    crosses, dices = [], []
    for logit, labels in zip(logits.unbind(1), INSIDE.values(), strict=True):
        t = sum((truth == label).double() for label in labels)[known]  # type: ignore[index]
        p = logit.double().sigmoid()[known]
        crosses.append(-(t * p.log() + (1 - t) * (1 - p).log()).mean())
        dices.append((2 * (p * t).sum() + 1e-5) / (p.sum() + t.sum() + 1e-5))
    wanted = torch.stack(crosses).mean() + 0.5 * (1 - torch.stack(dices).mean())
    torch.testing.assert_close(task.step(ToyEncoder(), batch, seed=0)["loss"].double(), wanted)


@pytest.mark.parametrize("target", [IGNORED, replace(IGNORED, annotated=("background", "a"))])
def test_ignored_voxels_are_in_no_loss_wherever_their_label_stands(target: MaskTarget) -> None:
    task, batch = bound(target), toy_batch(toy_card(mask=target))
    value = batch.targets["mask"]
    values = task.step(ToyEncoder(), batch, seed=0)
    known = value != 2
    p = task.logits(ToyEncoder(), batch).softmax(1).movedim(1, -1)[known]  # background, a, b
    truth = torch.tensor([0, 1, -9, 2])[value][known]
    if target.annotated:  # b counts as background
        p, truth = torch.stack([p[:, 0] + p[:, 2], p[:, 1]], 1), truth.where(truth < 2, 0)
    dice = [
        (2 * p[truth == k, k].sum() + 1e-5) / (p[:, k].sum() + (truth == k).sum() + 1e-5) for k in range(1, p.shape[1])
    ]
    torch.testing.assert_close(values["cross_entropy"], F.nll_loss(p.log(), truth).detach())
    torch.testing.assert_close(values["dice_loss"], 1 - torch.stack(dice).mean().detach())


@pytest.mark.parametrize("target", [TUMOR, IGNORED])
def test_a_batch_of_ignored_voxels_alone_costs_nothing_and_has_a_gradient(target: MaskTarget) -> None:
    task, batch = bound(target), toy_batch(toy_card(mask=target))
    batch.targets["mask"].fill_(target.left_out[0])
    values = task.step(ToyEncoder(), batch, seed=0)
    assert float(values["cross_entropy"]) == 0
    values["loss"].backward()
    assert all(bool(p.grad.isfinite().all()) for p in task.modules()["toy"].parameters() if p.grad is not None)


def test_a_label_map_is_written_region_over_region_as_nnunet_writes_it() -> None:
    generator = torch.Generator().manual_seed(0)
    answer = torch.rand(2, 3, 4, 5, 6, generator=generator)
    wanted = torch.zeros(2, 4, 5, 6, dtype=torch.int64)
    for place in np.ndindex(*wanted.shape):
        for region, label in enumerate((1, 2, 3)):
            if answer[place[0], region, *place[1:]] > 0.5:
                wanted[place] = label
    assert torch.equal(TUMOR.label_map(answer), wanted)
    truth = torch.randint(0, 5, wanted.shape, generator=generator)
    certain = TUMOR.inside(truth).nan_to_num()
    assert torch.equal(TUMOR.label_map(certain), truth.where(truth < 4, 0))
    assert IGNORED.label_map(torch.eye(3)[None, :, :, None, None]).flatten().tolist() == [0, 1, 3]


def test_dice_is_of_each_region_of_the_written_map_where_nothing_is_ignored(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    answers, truths = (
        torch.rand(3, 3, 4, 5, 6, generator=generator),
        torch.randint(0, 5, (3, 4, 5, 6), generator=generator),
    )
    metric = VolumeDice(TUMOR)
    metric.update(answers, truths)
    wanted = {}
    for name, labels in INSIDE.items():
        scores = []
        for guess, truth in zip(TUMOR.label_map(answers).numpy(), truths.numpy(), strict=True):
            g, t = np.isin(guess, labels)[truth != 4], np.isin(truth, labels)[truth != 4]
            scores.append(2 * (g & t).sum() / (g.sum() + t.sum()))
        wanted[f"dice_{name}"] = pytest.approx(np.mean(scores))
    found = {key: float(value) for key, value in metric.compute().items()}
    assert found == {"dice": pytest.approx(np.mean([w.expected for w in wanted.values()])), **wanted}

    write_nifti(tmp_path / "c.nii", truths[0].byte().numpy(), np.eye(4))
    scores = CaseScores(tmp_path / "c.nii", ["c"], TUMOR, tmp_path / "dice.csv")
    scores.add("c", TUMOR.label_map(answers)[0].byte().numpy().T, read_volume(tmp_path / "c.nii", orientation=None))
    one = VolumeDice(TUMOR)
    one.update(answers[:1], truths[:1])
    assert scores.rows["c"]["dice"] == pytest.approx([float(v) for k, v in one.compute().items() if k != "dice"])


def test_a_constant_answer_is_the_share_of_each_region_among_what_counts() -> None:
    value = torch.tensor([0] * 3 + [1] * 2 + [2] * 4 + [3] + [4] * 20).view(1, 1, 5, 6)
    logits = TUMOR.constant_logits(TUMOR.tally(value), value)
    assert logits.shape == (1, 3, 1, 5, 6)
    shares = logits[0, :, 0, 0, 0].sigmoid()
    torch.testing.assert_close(shares, torch.tensor([(7 + 1) / 12, (5 + 1) / 12, (1 + 1) / 12]))
    classes = IGNORED.constant_logits(IGNORED.tally(value.clamp_max(3)), value)[0, :, 0, 0, 0].exp()
    torch.testing.assert_close(classes, torch.tensor([4.0, 3.0, 22.0]) / 29)


def test_a_shared_decoder_ignores_what_any_dataset_ignores_and_refuses_regions() -> None:
    other = MaskTarget(("background", "b", "c"))
    whole = ("background", "a", "b", "c", "unknown")
    assert united({"x": IGNORED, "y": other}) == {
        "x": MaskTarget(whole, ("background", "a", "b"), ("unknown",)),
        "y": MaskTarget(whole, ("background", "b", "c"), ("unknown",)),
    }
    with pytest.raises(InputError, match="x tells regions, which a shared decoder of classes cannot: leave shared out"):
        united({"x": TUMOR, "y": other})
    with pytest.raises(InputError, match="'unknown' is ignored in x, and a class of another dataset"):
        united({"x": IGNORED, "y": MaskTarget(("background", "unknown"))})


# ------------------------------------------------------------------------------------------------------- patches


def test_no_patch_and_no_window_is_chosen_by_ignored_voxels() -> None:
    members = {"image": np.zeros((1, 16, 16, 16), np.float32), "mask": np.zeros((16, 16, 16), np.uint8), "json": {}}
    members["mask"][0, 0, 0], members["mask"][15, 15, 15] = 1, 4
    stage = make_stage(toy_card(mask=TUMOR), {"patch_size": [4, 4, 4], "foreground": 1.0}, training=True)
    assert {int(stage("k", members, seed).targets["mask"].max()) for seed in range(20)} == {1}

    assert measure_window(ToyCT(), ToyCT.card) == (10.0, 30.0)


def example(folder: Path) -> dict[str, Any]:
    """A set in nnU-Net's layout whose masks hold two nested regions and a slab of ignored voxels, bright as nothing."""
    told = NnunetRaw.write_example(folder)
    root = Path(told["root"])
    content = json.loads((root / "dataset.json").read_text())
    content |= {"labels": {"background": 0, "both": [1, 2], "right": 2, "ignore": 3}, "regions_class_order": [1, 2]}
    (root / "dataset.json").write_text(json.dumps(content))
    for part in ("Tr", "Ts"):
        for file in sorted((root / f"labels{part}").iterdir()):
            for path in (file, *sorted((root / f"images{part}").glob(f"{file.name.partition('.')[0]}_*"))):
                volume = read_volume(path, orientation=None)
                volume.array[0, :2] = 3 if path == file else 1000
                write_nifti(path, volume.array[0], np.asarray(volume.affine))
    return told


@pytest.mark.slow
def test_regions_and_an_ignored_label_train_predict_score_and_are_published_alike(
    tmp_path: Path, platform_command: Callable[..., Any]
) -> None:
    told = example(tmp_path / "raw")

    def run(*arguments: str) -> str:
        done = platform_command(*arguments, timeout_s=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    build = [f"--data.datasets.mine.build.init_args.{name}={value}" for name, value in told.items()]
    small = ["--data.datasets.mine.sample.patch_size", "[16, 16, 16]", "--data.datasets.mine.batch_size", "2"]
    small += ["--model.backbone.stems", "{mri: 2}", "--trainer.max_steps", "20", "--trainer.val_check_interval", "20"]
    small += ["--data.num_workers", "0", "--model.warmup_steps", "5", "--data.datasets.mine.augment", "null"]
    small += ["--data.datasets.mine.fold", "{number: 1, of: 3}"]
    run("fit", "--config", "finetune_segmentation.yaml", *build, *small)
    folder, raw = "runs/finetune_segmentation", Path(told["root"])
    logged = (tmp_path / folder / "metrics.csv").read_text()
    assert "val/organs/mine/dice_both" in logged
    assert "val/organs/mine/dice_right" in logged
    assert [len(fold["val"]) for fold in json.loads((tmp_path / folder / "folds/mine.json").read_text())] == [2, 2, 2]

    files = ["--input", str(raw / "imagesTs"), "--labels", str(raw / "labelsTs")]
    run("publish", folder, "--output", "local-dir:published", "--heads")
    run("predict", folder, *files, "--output", "of_run", "--checkpoint", "last")
    run("predict", f"local-dir:{tmp_path / 'published'}", *files, "--output", "of_publication")
    for path in sorted((tmp_path / "of_run").iterdir()):
        assert path.read_bytes() == (tmp_path / "of_publication" / path.name).read_bytes(), path.name
    header, row, _ = (tmp_path / "of_run" / "dice.csv").read_text().splitlines()
    assert header == "key,dice,dice_both,dice_right"
    assert float(row.split(",")[1]) > 0.2
    labels = read_volume(tmp_path / "of_run" / "p9_scan0.nii.gz", orientation=None).array
    assert set(np.unique(labels)) <= {0, 1, 2}

    net = inflate3d.create_segmenter(f"local-dir:{tmp_path / 'published'}", pretrained=True).eval()
    assert net.label_names == ["both", "right"]
    with torch.no_grad():
        logits = net(torch.randn(1, 2, 16, 32, 32))
    both, right = (logits.sigmoid() > 0.5).unbind(1)
    assert torch.equal(net.label_map(logits), torch.where(right, 2, both.long()))
    part = part_of(f"local-dir:{tmp_path / 'published'}")
    assert part.facts["names"] == ["both", "right"]
    x = torch.randn(1, 2, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(part.net(x), net(x).sigmoid())
