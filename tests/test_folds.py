"""Folds: train and val of finished shards dealt anew, by whole groups, as nnU-Net deals them and writes them down."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inflate3d.contracts import AbstractDataset, Case, RawSample
from inflate3d.data.shards.folds import Fold
from inflate3d.data.shards.writer import build_shards
from inflate3d.data.stream.order import SampleOrder
from inflate3d.errors import InputError
from inflate3d.targets import ClassTarget
from inflate3d.training import DataModule
from toy_batches import toy_card

KEYS = [f"case_{i:02d}" for i in range(12)]
GROUPS = {key: f"patient_{i // 2}" for i, key in enumerate(KEYS)}


class ToyGrouped(AbstractDataset):
    """Twelve volumes of six patients, of which three are in val, and a test case; each holds its own number."""

    card = toy_card("toy", label=ClassTarget(("a", "b")))

    def __init__(self, *, grouped: bool) -> None:
        self._grouped = grouped

    def cases(self) -> list[Case]:
        splits = dict.fromkeys(KEYS[:6], "train") | dict.fromkeys(KEYS[6:], "val")
        cases = [Case(k, s, int(k[-2:]), GROUPS[k] if self._grouped else None) for k, s in splits.items()]  # type: ignore[arg-type]
        return [*cases, Case("held_00", "test", 99)]

    def read(self, case: Case) -> RawSample:
        return RawSample(np.full((1, 4, 4, 4), case.source, np.uint8), targets={"label": case.source % 2})

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        return {}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of five samples: with patients, and without."""
    root = tmp_path_factory.mktemp("shards")
    for name in ("grouped", "plain"):
        dataset = ToyGrouped(grouped=name == "grouped")
        build_shards(dataset, root / name, max_samples_per_shard=5, progress=False)
    return root


def made(root: Path, name: str = "grouped", **fold: Any) -> DataModule:
    config = {"batch_size": 1, "sample": {"size": [4, 4, 4]}, **({"fold": fold} if fold else {})}
    return DataModule(str(root), {name: config}, seed=0).prepare()  # type: ignore[dict-item]


def held(data: DataModule) -> list[str]:
    return [batch.keys[0] for batch in data.val_dataloader()]


def trained(data: DataModule) -> list[str]:
    """Return the keys of an epoch."""
    (name,) = data.datasets
    return [b.keys[0] for b in data.first_batches(name, data.manifests[name].num_samples("train"))]


def test_each_case_is_held_out_once_and_never_trained_on_then_and_patients_stay_together(shards: Path) -> None:
    seen = []
    for number in range(3):
        data = made(shards, number=number, of=3)
        val, train = held(data), trained(data)
        assert sorted([*val, *train]) == KEYS
        assert {GROUPS[k] for k in val}.isdisjoint(GROUPS[k] for k in train)
        assert [batch.keys for batch in data.test_dataloader()] == [["held_00"]]
        assert (data.rows()[0]["train"], data.rows()[0]["val"]) == (8, 4)
        seen += val
    assert sorted(seen) == KEYS


def test_the_default_five_are_the_folds_that_nnunet_makes(shards: Path) -> None:
    # scikit-learn 1.9.1: [sorted(v) for _, v in KFold(5, shuffle=True, random_state=12345).split(range(12))]
    wanted = [[0, 3, 8], [7, 10, 11], [6, 9], [1, 4], [2, 5]]
    found = [sorted(int(key[-2:]) for key in held(made(shards, "plain", number=i, of=5))) for i in range(5)]
    assert found == wanted


def test_a_sample_is_that_of_its_key_and_the_order_follows_from_the_seed(shards: Path) -> None:
    data = made(shards, number=1, of=3)
    batches = data.first_batches("grouped", 20)
    for batch in batches:
        number = int(batch.keys[0][-2:])
        assert float(batch.image.mean()) == pytest.approx((number / 255 - 0.5) / 0.5, abs=1e-6)
    assert [b.keys for b in made(shards, number=1, of=3).first_batches("grouped", 20)] == [b.keys for b in batches]


def test_a_run_keeps_its_folds_and_cannot_go_on_in_another(shards: Path, tmp_path: Path) -> None:
    first, second = made(shards, number=0, of=3), made(shards, number=1, of=3)
    first.load_state_dict(made(shards, number=0, of=3).state_dict())
    with pytest.raises(InputError, match=r"data\.datasets\.grouped\.fold: 1 of 3 \(\w+\) before, 0 of 3 \(\w+\) now"):
        first.load_state_dict(second.state_dict())
    told = second.manifests["grouped"].dealt
    assert told is not None
    told.save(tmp_path / "folds" / "splits_final.json")
    again = made(shards, number=1, file=str(tmp_path / "folds" / "splits_final.json"))
    assert held(again) == held(second)
    again.load_state_dict(second.state_dict())
    content = json.loads((tmp_path / "folds" / "splits_final.json").read_text())
    assert [sorted(entry) for entry in content] == [["train", "val"]] * 3
    assert all(entry["train"] == sorted(set(KEYS) - set(entry["val"])) for entry in content)


def test_without_a_fold_nothing_is_dealt_anew(shards: Path) -> None:
    assert held(made(shards)) == KEYS[6:]
    assert made(shards).manifests["grouped"].dealt is None
    sizes = [3, 0, 4]
    plain, whole = SampleOrder(sizes, 7), SampleOrder([9] * 3, 7, numbers=[np.arange(n) for n in sizes])
    assert all(np.array_equal(a, b) for a, b in zip(plain.slots(0, 30), whole.slots(0, 30), strict=True))
    assert [plain.stored(i) for i in range(7)] == [whole.stored(i) for i in range(7)]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (3, "fold is 3; expected {number: 0, of: 5} or {number: 0, file: PATH}"),
        ({"number": 0}, "expected number, and either of or file"),
        ({"number": 0, "of": 5, "file": "x"}, "expected number, and either of or file"),
        ({"of": 5}, "expected number, and either of or file"),
        ({"number": 5, "of": 5}, "of must be at least 2, and numbers go from 0 to of - 1"),
        ({"number": 0, "of": 1}, "of must be at least 2"),
        ({"number": "0", "of": 5}, "fold.number is '0'; expected a whole number"),
        ({"numbr": 0, "of": 5}, "fold: unknown key 'numbr'; close names: 'number'"),
    ],
)
def test_a_fold_that_cannot_be_meant_is_refused(values: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        Fold.from_dict(values, where="data.datasets.x.fold")
    assert words in str(caught.value)
    assert str(caught.value).startswith("data.datasets.x.fold")


def swapped(folds: list[dict[str, list[str]]]) -> None:
    folds[0]["val"][0], folds[0]["train"][0] = folds[0]["train"][0], folds[0]["val"][0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda folds: folds[0]["val"].append("case_12"),
            "no case 'case_12' (1 in all) in train and val; close names:",
        ),
        (lambda folds: folds[0]["val"].pop(), "is in neither train nor val; add it"),
        (lambda folds: folds[0]["val"].append(folds[0]["train"][0]), "is listed twice; list each once, in train or"),
        (swapped, "in val; keep it in one of them"),
        (lambda folds: folds.clear(), "holds 0 folds, from 0"),
        (lambda folds: folds.insert(0, ["case_00"]), 'expected [{"train": [...], "val": [...]}]'),
    ],
)
def test_a_file_that_does_not_fit_the_cases_is_refused(
    shards: Path, tmp_path: Path, change: Callable[[Any], Any], words: str
) -> None:
    folds = [{"train": KEYS[4:], "val": KEYS[:4]}]
    change(folds)
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps(folds))
    with pytest.raises(InputError) as caught:
        made(shards, number=0, file=str(file))
    assert words in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_missing_file_and_too_few_patients_are_said(shards: Path) -> None:
    with pytest.raises(InputError, match=r"fold\.file: no file 'gone\.json'; expected nnU-Net's splits_final\.json"):
        made(shards, number=0, file="gone.json")
    with pytest.raises(InputError, match=r"fold: 6 groups cannot be dealt into 7 parts; take fewer"):
        made(shards, number=0, of=7)
