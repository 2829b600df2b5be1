"""Several targets of one dataset: from what a dataset reads to what a batch holds, each in its own type."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inflate3d.contracts import AbstractDataset, AbstractTarget, Case, DatasetCard, RawSample
from inflate3d.data import Manifest, build_shards, check_shards
from inflate3d.data.raw.readers import write_nifti
from inflate3d.datasets.toy import Toy
from inflate3d.datasets.volume_csv import VolumeCSV
from inflate3d.errors import InputError
from inflate3d.sample import Batch
from inflate3d.targets import ClassTarget, MaskTarget, MultiLabelTarget, ValueTarget
from inflate3d.training.datamodule import DataModule

TARGETS: dict[str, AbstractTarget] = {
    "organ": ClassTarget(("liver", "spleen", "kidney")),
    "findings": MultiLabelTarget(("cyst", "stone")),
    "parts": MaskTarget(("background", "left", "right"), annotated=("left",)),
    "age": ValueTarget("years", low=0, high=120),
}
MASK = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 3
NAN = math.nan


def card(targets: dict[str, AbstractTarget]) -> DatasetCard:
    facts: dict[str, Any] = dict.fromkeys(("title", "url", "licence", "citation"), "")
    whose = {"commercial_use": True, "weights_may_be_published": True}
    return DatasetCard("toy", "volume", modality="ct", targets=targets, **facts, **whose)


class ToyTargets(AbstractDataset):
    """Small volumes with the targets that are given, one mapping a case."""

    def __init__(self, rows: list[dict[str, Any]], targets: dict[str, AbstractTarget] | None = None) -> None:
        self._rows, self._targets = rows, TARGETS if targets is None else targets

    @property
    def card(self) -> DatasetCard:
        return card(self._targets)

    def cases(self) -> list[Case]:
        return [Case(f"case_{i}", "val", i) for i in range(len(self._rows))]

    def read(self, case: Case) -> RawSample:
        return RawSample(np.full((1, *MASK.shape), case.source, np.int16), targets=self._rows[case.source])

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        return {}


def whole_batch(folder: Path, rows: list[dict[str, Any]], targets: dict[str, AbstractTarget] | None = None) -> Batch:
    """Build shards of the rows and return them all as one batch."""
    build_shards(ToyTargets(rows, targets), folder / "toy", progress=False)
    (batch,) = DataModule(str(folder), {"toy": {"batch_size": len(rows)}}, seed=0).val_dataloader()
    return batch


def test_every_value_comes_back_in_a_batch_in_its_own_type(tmp_path: Path) -> None:
    rows = [
        {"organ": "spleen", "findings": ["stone"], "parts": MASK, "age": 41.7},
        {"organ": np.int64(2), "findings": {"cyst": 1, "stone": None}, "parts": MASK[::-1].copy(), "age": 0},
        {"organ": 0, "findings": [0, NAN], "parts": MASK, "age": NAN},
        {"parts": MASK, "organ": None, "findings": None, "age": None},
        {"parts": MASK},
    ]
    batch = whole_batch(tmp_path, rows)
    assert list(batch.targets) == list(TARGETS)
    assert {name: value.dtype for name, value in batch.targets.items()} == {
        "organ": torch.int64,
        "findings": torch.float32,
        "parts": torch.int64,
        "age": torch.float32,
    }
    assert batch.targets["organ"].tolist() == [1, 2, 0, -1, -1]
    findings = torch.tensor([[0, 1], [1, NAN], [0, NAN], [NAN, NAN], [NAN, NAN]])
    torch.testing.assert_close(batch.targets["findings"], findings, rtol=0, atol=0, equal_nan=True)
    ages = torch.tensor([41.7, 0, NAN, NAN, NAN])
    torch.testing.assert_close(batch.targets["age"], ages, rtol=0, atol=0, equal_nan=True)
    masks = np.stack([np.asarray(row["parts"]) for row in rows])
    np.testing.assert_array_equal(batch.targets["parts"].numpy(), masks)


def test_a_manifest_tells_what_is_known_of_each_target(tmp_path: Path) -> None:
    rows = [
        {"organ": 0, "findings": [1, 0], "parts": MASK, "age": 10},
        {"organ": 0, "findings": [1, None], "parts": np.zeros_like(MASK), "age": 20},
        {"parts": MASK},
    ]
    build_shards(ToyTargets(rows), tmp_path / "toy", progress=False)
    manifest = Manifest.load(tmp_path / "toy")
    assert manifest.card == card(TARGETS)
    assert manifest.statistics["targets"] == {
        "organ": {"class_samples": {"liver": 2, "spleen": 0, "kidney": 0}},
        "findings": {"label_samples": {"cyst": 2, "stone": 0}, "label_known": {"cyst": 2, "stone": 1}},
        "parts": {"class_samples": {"background": 3, "left": 2, "right": 2}},
        "age": {"known": 2, "mean": 15.0, "std": 5.0, "min": 10.0, "max": 20.0},
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"organ": 3}, "organ is 3; allowed: 0 to 2"),
        ({"organ": 0.5}, "organ is 0.5; allowed: 0 to 2"),
        ({"organ": "livr"}, "organ unknown class 'livr'; close names: 'liver'"),
        ({"organ": NAN}, "organ is nan; allowed: 0 to 2"),
        ({"findings": [0, 2]}, r"findings is \[0, 2\]; expected 2 entries, each 0, 1 or None"),
        ({"findings": [0]}, "findings is .*expected 2 entries"),
        ({"findings": ["cist"]}, "findings unknown label 'cist'; close names: 'cyst'"),
        ({"findings": {"gall": 1}}, "findings unknown label 'gall'"),
        ({"age": 121}, "age is 121; allowed: 0 to 120"),
        ({"age": math.inf}, "age is inf; allowed: 0 to 120"),
        ({"age": "old"}, "age is 'old'; expected a number"),
        ({"parts": MASK + 1}, "parts holds label 3; 3 classes are named: background, left, right"),
        ({"parts": MASK[0]}, r"parts is uint8 \(3, 4\); expected uint8 \(D, H, W\)"),
        ({"parts": np.zeros((2, 3, 5), np.uint8)}, r"image is \(2, 3, 4\) and parts \(2, 3, 5\)"),
        ({"parts": None}, "parts is not there; every sample needs one"),
        ({"size": 3}, "targets: unknown target 'size'"),
    ],
)
def test_a_value_that_breaks_its_target_is_a_reject_that_names_sample_and_target(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=rf"case_0: toy: case 'case_0': .*{words}"):
        build_shards(ToyTargets([{"parts": MASK, **change}]), tmp_path, progress=False)


@settings(max_examples=60, deadline=None)
@given(
    age=st.floats(0, 120) | st.integers(0, 120),
    organ=st.integers(0, 2),
    tags=st.lists(st.sampled_from([0, 1, None]), min_size=2, max_size=2),
)
def test_any_value_is_the_same_after_json(age: float, organ: int, tags: list[int | None]) -> None:
    for name, value in (("age", age), ("organ", organ), ("findings", tags)):
        target = TARGETS[name]
        stored = json.loads(json.dumps(target.encode(value)))
        expected = torch.tensor([NAN if v is None else v for v in value] if isinstance(value, list) else value)
        found = target.tensor(stored)
        torch.testing.assert_close(found, expected.to(found.dtype), rtol=0, atol=0, equal_nan=True)


def test_bounds_survive_json_also_where_there_are_none() -> None:
    targets: dict[str, AbstractTarget] = {
        "free": ValueTarget("mm"),
        "above": ValueTarget(low=0.5),
        "below": ValueTarget(high=-1),
        "between": ValueTarget("years", 0, 120),
    }
    stated = json.loads(json.dumps(card(targets).to_dict(), allow_nan=False))
    assert [stated["targets"][n]["low"] for n in targets] == [None, 0.5, None, 0.0]
    assert DatasetCard.from_dict(stated).targets == targets
    assert DatasetCard.from_dict(stated).targets["below"] == replace(targets["free"], unit="", high=-1.0)  # type: ignore[call-arg]
    for low, high in ((1, 1), (2, 1), (NAN, 1)):
        with pytest.raises(InputError, match="low must be below high"):
            ValueTarget(low=low, high=high)
    with pytest.raises(InputError, match=r"targets\.age: .*'x'"):
        AbstractTarget.from_dict({"type": "value", "low": "x"}, where="targets.age")


def test_a_mask_says_which_classes_were_looked_for() -> None:
    assert MaskTarget(("background", "a", "b")).unannotated == ()
    assert MaskTarget(("background", "a", "b"), annotated=("b",)).unannotated == (1,)
    with pytest.raises(InputError, match="annotated: unknown class 'c'"):
        MaskTarget(("background", "a"), annotated=("c",))


@pytest.mark.parametrize("name", ["image", "json", "Left lung", "a.b"])
def test_a_target_whose_name_cannot_be_a_member_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"toy: no target can be called '{name}'"):
        card({name: MaskTarget(("background", "a"))})
    if name not in ("image", "json"):
        assert card({name: ValueTarget()}).target(name) == ValueTarget()  # a JSON value may have any name


# --------------------------------------------------------------------------------------------- one dataset, end to end


def test_three_targets_of_one_dataset_build_check_and_batch(tmp_path: Path) -> None:
    toy = Toy(kind="volume_targets", num_train=5, num_val=3, size=16)
    build_shards(toy, tmp_path / "toy", progress=False)
    assert check_shards(tmp_path / "toy") == []
    data = DataModule(str(tmp_path), {"toy": {"batch_size": 4, "sample": {"patch_size": [8, 8, 8]}}}, seed=0)
    batch = next(iter(data.train_dataloader()))
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in batch.targets.items()}
    assert shapes == {
        "shape": ((4,), torch.int64),
        "mask": ((4, 8, 8, 8), torch.int64),
        "volume": ((4,), torch.float32),
    }
    raw = {case.key: toy.read(case).targets for case in toy.cases()}
    assert batch.targets["shape"].tolist() == [raw[key]["shape"] for key in batch.keys]
    assert torch.equal(batch.targets["volume"], torch.tensor([raw[key]["volume"] for key in batch.keys]))


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (
            {"shape": ClassTarget(("ball", "cube"))},
            "train-000000.tar: sample 'train_0002': shape is '2'; allowed: 0 to 1",
        ),
        ({"mask": MaskTarget(("background",))}, "mask holds label 1; 1 classes are named"),
        ({"volume": ValueTarget("ml", high=0.001)}, "volume is .*; allowed: -inf to 0.001"),
        ({"volume": MultiLabelTarget(("a", "b"))}, "volume is .* expected 2 entries"),
        ({"grade": MaskTarget(("background", "a"))}, r"grade is none; expected uint8 \(D, H, W\)"),
    ],
)
def test_a_check_finds_targets_that_are_not_what_the_card_says(
    tmp_path: Path, targets: dict[str, AbstractTarget], words: str
) -> None:
    manifest = build_shards(Toy(kind="volume_targets", num_train=3, num_val=1, size=16), tmp_path, progress=False)
    stated = replace(manifest.card, targets={**manifest.card.targets, **targets})
    replace(manifest, card=stated).save(tmp_path)
    faults = check_shards(tmp_path)
    assert faults
    with pytest.raises(AssertionError, match=words):
        raise AssertionError("\n".join(faults))


def test_a_csv_with_label_mask_and_numbers_batches_all_of_them(tmp_path: Path) -> None:
    for i in range(3):
        write_nifti(tmp_path / f"scan_{i}.nii.gz", np.full((4, 5, 6), 100 * i, np.int16), np.eye(4))
        write_nifti(tmp_path / f"mask_{i}.nii.gz", np.full((4, 5, 6), i % 2, np.uint8), np.eye(4))
    rows = ["old,41.7,1", ",,-2.5", "young,7,"]
    lines = [f"scan_{i}.nii.gz,mask_{i}.nii.gz,val,{row}" for i, row in enumerate(rows)]
    (tmp_path / "cases.csv").write_text("\n".join(["image,mask,split,label,age,score", *lines]))
    dataset = VolumeCSV(tmp_path, modality="mri", classes="background,organ", values="age:years,score")
    build_shards(dataset, tmp_path / "shards" / "mine", progress=False)
    assert check_shards(tmp_path / "shards" / "mine") == []
    (batch,) = DataModule(str(tmp_path / "shards"), {"mine": {"batch_size": 3}}, seed=0).val_dataloader()
    assert batch.targets["label"].tolist() == [0, -1, 1]
    assert batch.targets["mask"].flatten(1).float().mean(1).tolist() == [0, 1, 0]
    for name, values in (("age", [41.7, NAN, 7]), ("score", [1, -2.5, NAN])):
        torch.testing.assert_close(batch.targets[name], torch.tensor(values), rtol=0, atol=0, equal_nan=True)


def test_an_unlabelled_dataset_builds_checks_and_batches(tmp_path: Path) -> None:
    for i in range(3):
        np.save(tmp_path / f"scan_{i}.npy", np.full((4, 5, 6), i, np.float32))
    (tmp_path / "cases.csv").write_text("image\n" + "".join(f"scan_{i}.npy\n" for i in range(3)))
    dataset = VolumeCSV(tmp_path, modality="mri", val_count=1)
    manifest = build_shards(dataset, tmp_path / "shards" / "mine", progress=False)
    assert manifest.to_dict()["targets"] == {}
    assert check_shards(tmp_path / "shards" / "mine") == []
    datasets = {"mine": {"batch_size": 2, "sample": {"patch_size": [2, 2, 2]}, "augment": "augment/mri.yaml"}}
    data = DataModule(str(tmp_path / "shards"), datasets, seed=0, num_workers=1)
    batch = next(iter(data.train_dataloader()))
    assert (batch.targets, tuple(batch.image.shape)) == ({}, (2, 1, 2, 2, 2))
    assert batch.to(torch.float64).targets == {}


def test_a_flipped_bit_in_a_target_is_found(tmp_path: Path) -> None:
    manifest = build_shards(Toy(kind="volume_targets", num_train=2, num_val=1, size=16), tmp_path, progress=False)
    index = json.loads((tmp_path / manifest.shards[0].index).read_text())
    for suffix in ("mask.npy", "json"):
        offset, size = next(m[1:3] for m in index["samples"][1][1] if m[0] == suffix)
        path = tmp_path / manifest.shards[0].file
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[offset + size - 9] ^= 1
        path.write_bytes(changed)
        assert any(f"train_0001.{suffix} differs" in fault for fault in check_shards(tmp_path))
        path.write_bytes(whole)
    assert check_shards(tmp_path) == []
