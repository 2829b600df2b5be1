"""Several views of one sample: each drawn by its own name, whatever other views there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from inflate3d.data.samples.options import view_options
from inflate3d.data.samples.views import make_stage
from inflate3d.data.shards.members import decode_members, encode_sample
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.sample import Batch, Sample
from inflate3d.training.datamodule import DataModule
from nightly import slow_but

Views = dict[str, Any]
AUGMENT = [{"class_path": "RandomFlip", "init_args": {"axes": [0, 1, 2]}}, {"class_path": "RandomNoise"}]
GLOBAL: Views = {"global": {}}
LOCAL: Views = {"local": {"sample": {"patch_size": [4, 4, 4]}, "augment": [{"class_path": "RandomNoise"}]}}
IMAGE: Views = {"image": {}}
PLAIN: Views = {"plain": {"augment": None}}
TOY = Toy(kind="volume_targets", num_train=6, num_val=2, size=16)


@pytest.fixture(scope="module")
def members() -> dict[str, Any]:
    case = TOY.cases()[1]
    return decode_members(encode_sample(TOY.read(case), TOY.card, key=case.key))  # type: ignore[arg-type]


def sample(members: dict[str, Any], views: Views | None, seed: int = 5, *, training: bool = True) -> Sample:
    options = {"patch_size": [8, 8, 8]}
    stage = make_stage(TOY.card, options, training=training, augment=AUGMENT, views=views)
    return stage("k", members, seed)


def test_each_view_is_cut_and_augmented_as_it_says(members: dict[str, Any]) -> None:
    views = sample(members, GLOBAL | LOCAL | PLAIN).views
    assert {name: tuple(view.shape[1:]) for name, view in views.items()} == {
        "global": (8, 8, 8),
        "local": (4, 4, 4),
        "plain": (8, 8, 8),
    }
    stored = torch.from_numpy(members["image"].astype("float32"))
    window = stored.unfold(1, 8, 1).unfold(2, 8, 1).unfold(3, 8, 1)[0].flatten(0, 2)
    scaled = ((window.clip(-200, 600) + 200) / 800 - 0.5) / 0.5  # as the card says
    assert (scaled - views["plain"][0]).abs().amax((1, 2, 3)).min() < 1e-5  # a piece of the volume, not augmented
    assert (scaled - views["global"][0]).abs().amax((1, 2, 3)).min() > 1e-3


def test_a_view_depends_on_its_name_and_seed_alone(members: dict[str, Any]) -> None:
    every = sample(members, GLOBAL | LOCAL | IMAGE | PLAIN).views
    for some in (GLOBAL, LOCAL, IMAGE, PLAIN, PLAIN | GLOBAL, LOCAL | IMAGE | GLOBAL):
        for name, view in sample(members, some).views.items():
            assert torch.equal(view, every[name]), name
    assert torch.equal(sample(members, None).views["image"], every["image"])
    assert not torch.equal(every["global"], every["image"])
    assert not torch.equal(sample(members, GLOBAL, seed=6).views["global"], every["global"])


def test_targets_lie_on_the_view_that_a_batch_calls_its_image(members: dict[str, Any]) -> None:
    for views in (GLOBAL | LOCAL, LOCAL | GLOBAL, LOCAL | IMAGE):
        found = sample(members, views)
        first = next(iter(found.views))
        assert first == ("image" if "image" in views else next(iter(views)))
        alone = sample(members, {first: views[first]})
        assert found.targets["mask"].shape == found.views[first].shape[1:]
        assert torch.equal(found.targets["mask"], alone.targets["mask"])
        assert found.spacing_mm == alone.spacing_mm


def test_evaluation_sees_the_whole_image_alone(members: dict[str, Any]) -> None:
    found = sample(members, GLOBAL | LOCAL, training=False)
    assert list(found.views) == ["image"]
    assert torch.equal(found.views["image"], sample(members, None, training=False).views["image"])
    assert found.views["image"].shape == (1, 16, 16, 16)


@pytest.mark.parametrize("workers", slow_but([0, 2], 1))
def test_batches_hold_every_view_and_the_epoch_draws_anew(tmp_path: Path, workers: int) -> None:
    build_shards(TOY, tmp_path / "toy", progress=False)

    def batches(views: Views, count: int) -> list[Batch]:
        dataset = {"batch_size": 3, "sample": {"patch_size": [8, 8, 8]}, "augment": AUGMENT, "views": views}
        data = DataModule(str(tmp_path), {"toy": dataset}, seed=2, num_workers=workers)
        assert [list(b.views) for b in data.val_dataloader()] == [["image"]] * 2
        return [batch for batch, _ in zip(data.train_dataloader(), range(count), strict=False)]

    both, one = batches(GLOBAL | LOCAL, 4), batches(GLOBAL, 4)
    for a, b in zip(both, one, strict=True):
        assert {name: tuple(view.shape) for name, view in a.views.items()} == {
            "global": (3, 1, 8, 8, 8),
            "local": (3, 1, 4, 4, 4),
        }
        assert torch.equal(a.image, a.views["global"])
        assert a.keys == b.keys
        assert torch.equal(a.views["global"], b.views["global"])
        assert torch.equal(a.targets["mask"], b.targets["mask"])
    drawn = {
        (key, view.sum().item()) for batch in both for key, view in zip(batch.keys, batch.views["local"], strict=True)
    }
    assert len(drawn) == 12  # two epochs of six samples


@pytest.mark.parametrize(
    ("views", "words"),
    [
        ({"local": {"sampel": {}}}, r"data\.x\.views\.local\.sampel: unknown key 'sampel'; close names: 'sample'"),
        ({"local": {"sample": {"patchsize": [4, 4, 4]}}}, r"data\.x\.views\.local\.sample\.patchsize: unknown key"),
        ({"local": {"sample": {"size": [4, 4, 4]}}}, r"data\.x\.views\.local\.sample: patch_size cuts patches"),
        ({"local": None}, r"data\.x\.views\.local is None; expected"),
        ({"local": {"sample": None}}, r"data\.x\.views\.local is .*None"),
        (["global"], r"data\.x\.views is \['global'\]; expected \{NAME"),
    ],
)
def test_views_that_make_no_sense_are_refused(views: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        view_options(TOY.card, {"patch_size": [8, 8, 8]}, views, where="data.x")


def test_views_are_checked_before_any_weight_is_loaded(tmp_path: Path) -> None:
    build_shards(TOY, tmp_path / "toy", progress=False)
    views = {"local": {"sample": {"patch_size": [4, 4]}}}
    with pytest.raises(InputError, match=r"data\.datasets\.toy\.views\.local\.sample: patch_size is \[4, 4\]"):
        DataModule(str(tmp_path), {"toy": {"batch_size": 2, "views": views}}).prepare()
