"""Augmentation: axes at the border to TorchIO, draws from the sample's seed, errors that name the transform."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inflate3d.cli.config import packaged_configs
from inflate3d.data.samples.augment import VideoAugment, VolumeAugment, read_spec, seeded, swap_axes
from inflate3d.errors import InputError

IDENTITY = np.eye(4)


def flip(*axes: str | int) -> list[dict[str, Any]]:
    return [{"class_path": "RandomFlip", "init_args": {"axes": list(axes), "flip_probability": 1}}]


def volume() -> torch.Tensor:
    return torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)


# ---------------------------------------------------------------------------------------------------------- the axes


@pytest.mark.parametrize(
    ("axis", "ours"),
    [("Left", 3), ("Right", 3), ("Anterior", 2), ("Posterior", 2), ("Superior", 1), ("Inferior", 1), (0, 3), (2, 1)],
)
def test_a_flip_turns_the_axis_of_its_name(axis, ours):
    mask = torch.randint(0, 3, (3, 4, 5), dtype=torch.uint8)
    image, moved = VolumeAugment(flip(axis))(volume(), {"organ": mask, "cut": mask + 1}, affine=IDENTITY, seed=0)
    assert torch.equal(image, volume().flip(ours))
    assert list(moved) == ["organ", "cut"]
    assert torch.equal(moved["organ"], mask.flip(ours - 1))
    assert torch.equal(moved["cut"], mask.flip(ours - 1) + 1)


def test_left_and_right_follow_the_affine():
    """Where H grows to the left (the affine says so), a flip of Left turns H, not W."""
    affine = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], float)
    image, _ = VolumeAugment(flip("Left"))(volume(), {}, affine=affine, seed=0)
    assert torch.equal(image, volume().flip(2))


def test_translation_along_x_moves_w_by_millimetres():
    """x is W; 4 mm are two voxels of 2 mm. TorchIO moves by `translation` in millimetres along (x, y, z)."""
    image = torch.zeros(1, 5, 6, 9)
    image[0, 2, 3, 4] = 1
    spec = [{"class_path": "Affine", "init_args": {"scales": 1, "degrees": 0, "translation": [4, 0, 0]}}]
    moved, _ = VolumeAugment(spec)(image, {}, affine=np.diag([2.0, 1.0, 3.0, 1.0]), seed=0)
    assert sorted((*map(int, i), round(float(moved[tuple(i)]), 3)) for i in moved.nonzero()) in (
        [(0, 2, 3, 2, 1.0)],
        [(0, 2, 3, 6, 1.0)],
    )


def test_the_border_is_its_own_inverse_and_a_view():
    image = volume()
    assert swap_axes(image).shape == (2, 5, 4, 3)
    assert torch.equal(swap_axes(swap_axes(image)), image)
    assert swap_axes(image).data_ptr() == image.data_ptr()


def test_image_and_mask_move_together():
    mask = (torch.rand(1, 12, 12, 12, generator=torch.Generator().manual_seed(0)) > 0.5).to(torch.uint8)[0]
    spec = [{"class_path": "RandomAffine", "init_args": {"image_interpolation": "nearest", "default_pad_value": 0}}]
    image, moved = VolumeAugment(spec)(mask[None].float(), {"mask": mask}, affine=IDENTITY, seed=3)
    assert moved["mask"].dtype == torch.uint8
    assert torch.equal(image[0].to(torch.uint8), moved["mask"])
    assert not torch.equal(moved["mask"], mask)


# --------------------------------------------------------------------------------------------------------- the draws


def test_draws_come_from_the_seed_and_leave_every_generator_as_it_was():
    augment = VolumeAugment("augment/ct.yaml")
    mask = torch.zeros(16, 16, 16, dtype=torch.uint8)
    noise = torch.randn(1, 16, 16, 16)

    def run(seed: int) -> torch.Tensor:
        return augment(noise.clone(), {"mask": mask}, affine=IDENTITY, seed=seed)[0]

    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    first = [run(seed) for seed in range(8)]
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    torch.manual_seed(99)
    assert all(torch.equal(a, run(seed)) for seed, a in enumerate(first))
    assert len({float(x.sum()) for x in first}) > 4


def test_generators_are_put_back_after_an_error():
    before = torch.get_rng_state()
    with contextlib.suppress(KeyError), seeded(2**64 - 1):
        torch.rand(3)
        raise KeyError
    assert torch.equal(before, torch.get_rng_state())


def test_every_frame_of_a_clip_gets_the_same_draw():
    frame = torch.randint(0, 255, (1, 3, 8, 8), dtype=torch.uint8)
    clip = VideoAugment("augment/video.yaml")(frame.repeat(5, 1, 1, 1), seed=1)
    assert clip.dtype == torch.uint8
    assert all(torch.equal(clip[0], other) for other in clip)


# ----------------------------------------------------------------------------------------------------------- the spec


@pytest.mark.parametrize("name", sorted(n for n in packaged_configs() if n.startswith("augment/")))
def test_every_packaged_augmentation_builds_and_runs(name):
    if name == "augment/video.yaml":
        assert VideoAugment(name)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), seed=0).shape == (2, 3, 8, 8)
        return
    mask = torch.zeros(16, 16, 16, dtype=torch.uint8)
    for seed in range(3):
        image, moved = VolumeAugment(name)(torch.rand(1, 16, 16, 16), {"mask": mask}, affine=IDENTITY, seed=seed)
        assert image.shape == (1, 16, 16, 16)
        assert image.isfinite().all()
        assert moved["mask"].shape == (16, 16, 16)


def test_a_file_of_ones_own_comes_before_a_packaged_one(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(read_spec("augment/ct.yaml", where="x")) > 1
    Path("augment").mkdir()
    Path("augment/ct.yaml").write_text("- {class_path: RandomFlip}\n")
    assert read_spec("augment/ct.yaml", where="x") == [{"class_path": "RandomFlip"}]


def test_transforms_nest():
    spec = [
        {
            "class_path": "OneOf",
            "init_args": {"transforms": [{"class_path": "RandomNoise"}, {"class_path": "RandomBlur"}]},
        }
    ]
    image, _ = VolumeAugment(spec)(volume(), {}, affine=IDENTITY, seed=0)
    assert not torch.equal(image, volume())


def test_a_full_class_path_is_imported():
    augment = VolumeAugment([{"class_path": "torchio.transforms.RandomFlip", "init_args": {"axes": ["Left"]}}])
    assert type(augment.transforms[0]).__name__ == "RandomFlip"


@pytest.mark.parametrize(
    ("augment", "spec", "words"),
    [
        (
            VolumeAugment,
            [{"class_path": "RandomFlop"}],
            "unknown transform 'RandomFlop'; close names: 'RandomFlip'",
        ),
        (VideoAugment, [{"class_path": "ColourJitter"}], "close names: 'ColorJitter'"),
        (VolumeAugment, "augment/cd.yaml", "unknown augmentation.*close names: 'augment/ct.yaml'"),
        (VolumeAugment, [{"class_path": "RandomFlip", "init_args": {"axis": 0}}], "argument 'axis'.*'axes'"),
        (
            VolumeAugment,
            [{"class_path": "RandomFlip", "init_args": {"flip_probability": 2}}],
            "RandomFlip: .*2",
        ),
        (VolumeAugment, [{"class_path": "no.such.Transform"}], "no transform 'no.such.Transform'"),
        (VolumeAugment, ["RandomFlip"], "expected {class_path"),
        (VolumeAugment, [{"class_path": "RandomFlip", "args": {}}], "expected {class_path"),
    ],
)
def test_what_cannot_be_built_is_refused(augment, spec, words):
    with pytest.raises(InputError, match=words) as caught:
        augment(spec, where="data.datasets.liver.augment")
    assert str(caught.value).startswith("data.datasets.liver.augment")


def test_a_file_that_is_no_list_is_refused(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text("RandomFlip: {}\n")
    with pytest.raises(InputError, match="expected a list"):
        read_spec(str(path), where="x")
    path.write_text("- [\n")
    with pytest.raises(InputError, match="not valid YAML"):
        read_spec(str(path), where="x")


def test_video_must_stay_bytes():
    augment = VideoAugment([{"class_path": "ConvertImageDtype", "init_args": {"dtype": torch.float32}}], where="x")
    with pytest.raises(InputError, match="leave out ToDtype"):
        augment(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), seed=0)
