"""Every dataset, from its own example to shards and back; a new file in datasets/ is tested without a new test."""

from __future__ import annotations

import inspect
import json
import pickle
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from inflate3d.contracts import AbstractDataset, AbstractTarget, DatasetCard, RawSample
from inflate3d.data.raw.keys import is_key
from inflate3d.data.shards.manifest import Manifest
from inflate3d.data.shards.reader import ShardReader
from inflate3d.data.shards.writer import build_shards
from inflate3d.discover import plug_ins
from inflate3d.errors import InputError

NAMES = sorted(
    name for name, plug_in in plug_ins("datasets").items() if plug_in.module.startswith("inflate3d.datasets")
)


def dataset_class(name: str) -> type[AbstractDataset]:
    return plug_ins("datasets")[name].load()


@pytest.fixture(params=NAMES)
def example(request: pytest.FixtureRequest, tmp_path: Path) -> AbstractDataset:
    """One dataset, made from the example that it writes itself."""
    made = dataset_class(request.param)
    return made(**made.write_example(tmp_path / "raw"))


def test_the_eight_datasets_are_found() -> None:
    expected = "msd nnunet_raw medmnist3d volume_csv video_folder video_csv modelnet10 toy"
    assert set(expected.split()) <= set(NAMES)


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


def test_shards_hold_what_the_dataset_reads(example: AbstractDataset, tmp_path: Path) -> None:
    manifest = build_shards(example, tmp_path / "shards", progress=False)
    assert manifest.card == example.card
    assert not manifest.rejects
    cases = {c.key: c for c in example.cases()}
    seen = []
    for split in ("train", "val", "test"):
        reader = ShardReader(tmp_path / "shards", Manifest.load(tmp_path / "shards"), split)
        for shard, entry in enumerate(reader.entries):
            for i in range(entry.samples):
                members = reader.sample(shard, i)
                seen.append(members.key)
                assert cases[members.key].split == split
                assert_holds(members.decode(), example.read(cases[members.key]), manifest.card)
    assert sorted(seen) == sorted(cases)


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


def test_an_absent_or_empty_root_is_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in NAMES:
        made = dataset_class(name)
        arguments = made.write_example(tmp_path / name)
        if "root" not in arguments:
            continue
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
