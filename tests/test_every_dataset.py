"""Every dataset, from its own example to shards and back; a new file in datasets/ is tested without a new test."""

from __future__ import annotations

import inspect
import json
import pickle
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from inflate3d.contracts import AbstractDataset, AbstractTarget, AbstractTask, DatasetCard, RawSample, medium_of
from inflate3d.data.raw.keys import is_key
from inflate3d.data.shards.manifest import Manifest
from inflate3d.data.shards.reader import ShardReader
from inflate3d.data.shards.writer import build_shards
from inflate3d.discover import plug_ins
from inflate3d.errors import InputError
from inflate3d.training import DataModule
from nightly import slow_but
from toy_batches import ToyEncoder

NAMES = sorted(
    name for name, plug_in in plug_ins("datasets").items() if plug_in.module.startswith("inflate3d.datasets")
)


SEVERAL_FIRST = sorted(NAMES, key=lambda name: name not in ("acdc", "formula_motions"))
"""The names; those of a volume and of a clip with several targets come first."""


def dataset_class(name: str) -> type[AbstractDataset]:
    return plug_ins("datasets")[name].load()


@pytest.fixture(params=NAMES)
def example(request: pytest.FixtureRequest, tmp_path: Path) -> AbstractDataset:
    """One dataset, made from the example that it writes itself."""
    made = dataset_class(request.param)
    return made(**made.write_example(tmp_path / "raw"))


def test_every_file_of_datasets_is_walked() -> None:
    files = {file.stem for file in (Path(__file__).parents[1] / "datasets").glob("[!_]*.py")}
    assert files
    assert files == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_base_card_states_medium_licence_and_title(name: str) -> None:
    card = dataset_class(name).base_card
    assert card.name == name
    assert card.media in plug_ins("media")
    assert all(isinstance(target, AbstractTarget) for target in card.targets.values())
    assert card.title
    assert card.modality
    assert card.licence
    assert card.url.startswith("http") or card.licence in ("unknown", "Apache-2.0")


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_private_where_the_licence_is_unknown(name: str) -> None:
    card = dataset_class(name).base_card
    if card.licence == "unknown":
        assert card.commercial_use is None
        assert not card.weights_may_be_published


def test_a_file_that_is_gone_when_its_case_is_read_is_named(example: AbstractDataset, tmp_path: Path) -> None:
    cases = example.cases()
    if not (tmp_path / "raw").exists():
        assert example.read(cases[0]).targets  # a formula needs none
        return
    shutil.rmtree(tmp_path / "raw")
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "raw"))):
        example.read(cases[0])


def test_card_survives_json_and_names_channels_and_targets(example: AbstractDataset) -> None:
    card = example.card
    assert DatasetCard.from_dict(json.loads(json.dumps(card.to_dict(), allow_nan=False))) == card
    assert card.targets  # an example shows what a dataset can tell
    assert all(len(target.names) != 1 for target in card.targets.values())
    assert len(card.input.intensity.mean) in (1, len(card.input.channels))
    low, high = card.input.intensity.window
    assert low < high


def test_cases_are_stable_and_groups_do_not_straddle(example: AbstractDataset) -> None:
    cases = example.cases()
    assert cases == example.cases() == pickle.loads(pickle.dumps(example)).cases()
    assert len({c.key for c in cases}) == len(cases)
    assert all(is_key(c.key) for c in cases)
    assert {"train", "val"} <= {c.split for c in cases}
    splits = defaultdict(set)
    for case in cases:
        if case.group is not None:
            splits[case.group].add(case.split)
    assert all(len(s) == 1 for s in splits.values())


@pytest.fixture(scope="module", params=NAMES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[AbstractDataset, Path]:
    """One dataset, made from its own example, and the folder of its shards."""
    made, folder = dataset_class(request.param), tmp_path_factory.mktemp(request.param)
    dataset = made(**made.write_example(folder / "raw"))
    build_shards(dataset, folder / "shards", progress=False)
    return dataset, folder / "shards"


def test_shards_hold_what_the_dataset_reads(built: tuple[AbstractDataset, Path]) -> None:
    example, folder = built
    manifest = Manifest.load(folder)
    assert manifest.card == example.card
    assert not manifest.rejects
    cases = {c.key: c for c in example.cases()}
    seen = []
    for split in ("train", "val", "test"):
        reader = ShardReader(folder, manifest, split)
        for shard, entry in enumerate(reader.entries):
            for i in range(entry.samples):
                members = reader.sample(shard, i)
                seen.append(members.key)
                assert cases[members.key].split == split
                assert_holds(members.decode(), example.read(cases[members.key]), manifest.card)
    assert sorted(seen) == sorted(cases)


@pytest.mark.parametrize("built", slow_but(SEVERAL_FIRST, 2), indirect=True)
def test_a_batch_of_it_goes_through_every_task_that_takes_it(built: tuple[AbstractDataset, Path]) -> None:
    card, folder = built[0].card, built[1]
    sample = {"patch_size": [12, 16, 16]} if "patch_size" in option_names(card) else {"num_frames": 8, "crop_size": 16}
    options = {"batch_size": 2, "sample": sample}
    batch = next(iter(DataModule(str(folder.parent), {"shards": options}, num_workers=0).prepare().train_dataloader()))
    assert set(batch.targets) == set(card.targets)
    taken = set()
    for name, target in [(name, target) for name in sorted(plug_ins("tasks")) for target in [None, *card.targets]]:
        if (task := fitting(name, target, card)) is None:
            continue
        task.build(ToyEncoder())
        assert task.step(ToyEncoder(), batch, seed=1)["loss"].isfinite(), name
        with torch.no_grad():
            answer, exhibits = task.predict(ToyEncoder(), batch), task.show(ToyEncoder(), batch, seed=1)
        assert len(answer.tensor) == len(batch)
        if (metrics := task.metrics("shards")) is not None:
            metrics.update(answer.tensor, batch.targets[target])
            assert task.main_metric in metrics.compute()
        else:
            assert [len(exhibit.panels) > 0 for exhibit in exhibits] == [True] * len(batch)
        taken |= {target} - {None}
    assert taken == {n for n, t in card.targets.items() if type(t) in trained_targets()}


def option_names(card: DatasetCard) -> set[str]:
    return {field.name for field in fields(medium_of(card).options)}


def trained_targets() -> set[type]:
    """The types of target that some task needs."""
    return {plug_in.load().target for plug_in in plug_ins("tasks").values()} - {None}


def fitting(name: str, target: str | None, card: DatasetCard) -> AbstractTask | None:
    """A task over a dataset called shards, bound to its card; None where it does not take that target of it."""
    cls = plug_ins("tasks")[name].load()
    if (cls.target is None) != (target is None):
        return None
    needed = [n for n, p in inspect.signature(cls).parameters.items() if p.default is p.empty and n != "datasets"]
    given = ["shards"] if target is None else {"shards": target}
    task: AbstractTask = cls(datasets=given, **dict.fromkeys(needed, 1.0))
    try:
        task.bind({"shards": card})
    except InputError:
        return None
    return task


def assert_holds(decoded: dict, raw: RawSample, card: DatasetCard) -> None:
    """Image, clip and targets read back are those of the raw sample."""
    if raw.image is not None:
        assert decoded["image"].dtype == raw.image.dtype
        np.testing.assert_array_equal(decoded["image"], raw.image)
    assert set(raw.targets) <= set(card.targets)
    for name, target in card.targets.items():
        stored = decoded[name] if target.per_voxel else decoded["json"]["targets"][name]
        np.testing.assert_array_equal(stored, target.encode(raw.targets[name]))
    if raw.video is not None:
        assert bytes(decoded["video"]) == raw.video
    assert raw.affine is None or np.allclose(decoded["json"]["affine"], raw.affine)


@pytest.mark.parametrize("name", [n for n in NAMES if "root" in inspect.signature(dataset_class(n)).parameters])
def test_an_absent_or_empty_root_is_refused_and_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    made = dataset_class(name)
    arguments = made.write_example(tmp_path / name)
    for root in (tmp_path / "absent", tmp_path / "empty"):
        with pytest.raises(InputError, match=root.name) as caught:
            made(**{**arguments, "root": str(root)}).cases()
        assert len(str(caught.value).splitlines()) <= 8


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_documented_and_keyword_only_after_root(name: str) -> None:
    made = dataset_class(name)
    parameters = [p for p in inspect.signature(made.__init__).parameters.values() if p.name not in ("self", "root")]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters)
    assert all(p.annotation is not inspect.Parameter.empty for p in parameters)


def test_importing_every_dataset_needs_no_torch() -> None:
    code = (
        "import sys; from inflate3d.discover import plug_ins\n"
        "[p.load() for p in plug_ins('datasets').values()]\n"
        "assert not {'torch', 'nibabel', 'SimpleITK', 'av'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
