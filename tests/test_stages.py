"""From members to samples: crops, padding, normalisation, clips."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from inflate3d.contracts import AbstractTarget, DatasetCard, InputSpec, Intensity
from inflate3d.data.samples.boxes import cut, frame_indices
from inflate3d.data.samples.frames import decode_frames
from inflate3d.data.samples.intensity import Normalise
from inflate3d.data.samples.options import VideoSample, sample_options
from inflate3d.data.samples.views import make_stage
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.sample import IMAGE
from inflate3d.targets import ClassTarget, MaskTarget

IDENTITY = Intensity("window", (0.0, 1.0), (0.0,), (1.0,))


MASK = {"mask": MaskTarget(("background", "a", "b"))}
LABEL = {"label": ClassTarget(("x", "a", "b"))}


def card(
    media: str,
    targets: dict[str, AbstractTarget],
    intensity: Intensity = IDENTITY,
    channels: tuple[str, ...] = ("image",),
) -> DatasetCard:
    spec = InputSpec(channels, intensity=intensity)
    facts: dict[str, Any] = dict.fromkeys(("title", "modality", "url", "licence", "citation"), "")
    return DatasetCard(
        name="toy",
        media=media,
        targets=targets,
        commercial_use=True,
        weights_may_be_published=True,
        input=spec,
        **facts,
    )


def segmentation(shape: tuple[int, int, int], **json: Any) -> dict[str, Any]:
    """A volume in [0, 1] whose voxels tell where they are, and a mask with 3 voxels of class 2."""
    image = np.linspace(0, 1, int(np.prod(shape)), dtype=np.float32).reshape(1, *shape)
    mask = np.zeros(shape, np.uint8)
    mask[-1, -1, -3:] = 2
    return {
        "image": image,
        "mask": mask,
        "json": {"targets": {}, "spacing_mm": [3.0, 2.0, 1.0], "affine": None, **json},
    }


# ------------------------------------------------------------------------------------------------------ segmentation


def test_a_training_patch_is_a_piece_of_the_volume_and_its_mask():
    members = segmentation((9, 10, 11))
    stage = make_stage(card("volume", MASK), {"patch_size": [4, 5, 6]}, training=True)
    for seed in range(20):
        sample = stage("k", members, seed)
        assert sample.views[IMAGE].shape == (1, 4, 5, 6)
        assert sample.targets["mask"].dtype == torch.int64
        corner = int(np.abs(members["image"].ravel() - sample.views[IMAGE][0, 0, 0, 0].item()).argmin())
        d, h, w = np.unravel_index(corner, (9, 10, 11))
        box = (slice(d, d + 4), slice(h, h + 5), slice(w, w + 6))
        np.testing.assert_array_equal(sample.views[IMAGE][0].numpy(), members["image"][0][box])
        np.testing.assert_array_equal(sample.targets["mask"].numpy(), members["mask"][box])
    assert sample.spacing_mm == (3.0, 2.0, 1.0)


def test_a_sample_depends_on_its_seed_alone():
    stage = make_stage(card("volume", MASK), {"patch_size": [4, 4, 4]}, training=True)
    members = segmentation((12, 12, 12))
    np.random.seed(0)  # noqa: NPY002
    first = [stage("k", members, seed).views[IMAGE] for seed in range(5)]
    np.random.seed(1)  # noqa: NPY002
    again = [stage("k", members, seed).views[IMAGE] for seed in range(5)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({float(x.sum()) for x in first}) > 2


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 30), (0.5, 80, 120), (1.0, 200, 200)])
def test_foreground_is_the_share_of_patches_that_hold_some(share, low, high):
    options = {"patch_size": [4, 4, 4], "foreground": share}
    stage = make_stage(card("volume", MASK), options, training=True)
    members = segmentation((16, 16, 16))
    assert low <= sum(bool(stage("k", members, seed).targets["mask"].any()) for seed in range(200)) <= high


def test_a_volume_without_foreground_still_gives_patches():
    members = segmentation((8, 8, 8))
    members["mask"][:] = 0
    stage = make_stage(card("volume", MASK), {"patch_size": [4, 4, 4], "foreground": 1.0}, training=True)
    assert stage("k", members, 0).views[IMAGE].shape == (1, 4, 4, 4)


def test_a_small_volume_is_padded_with_its_minimum_and_label_0():
    members = segmentation((2, 6, 6))
    members["image"] += 0.5
    members["mask"][:] = 1
    intensity = Intensity("window", (0.0, 2.0), (0.5,), (0.25,))
    stage = make_stage(card("volume", MASK, intensity), {"patch_size": [5, 6, 6]}, training=True)
    sample = stage("k", members, 0)
    assert sample.targets["mask"].sum(dim=(1, 2)).tolist() in ([0, 36, 36, 0, 0], [0, 0, 36, 36, 0])
    outside = sample.views[IMAGE][0][sample.targets["mask"] == 0]
    assert torch.allclose(outside, torch.tensor((0.5 / 2 - 0.5) / 0.25))
    assert sample.views[IMAGE].min() == outside[0]


def test_evaluation_gives_the_whole_volume_padded_to_a_patch():
    members = segmentation((6, 9, 4))
    stage = make_stage(card("volume", MASK), {"patch_size": [8, 8, 8]}, training=False)
    sample = stage("k", members, 0)
    assert sample.views[IMAGE].shape == (1, 8, 9, 8)
    np.testing.assert_array_equal(sample.views[IMAGE][0, 1:7, :, 2:6].numpy(), members["image"][0])
    np.testing.assert_array_equal(sample.targets["mask"][1:7, :, 2:6].numpy(), members["mask"])
    assert sample.targets["mask"].sum() == members["mask"].sum()


# ----------------------------------------------------------------------------------------------------- normalisation


def test_window_clips_scales_and_normalises_each_channel():
    image = np.array([-2000, -1000, 0, 1000, 4000], np.int16).reshape(1, 1, 1, 5).repeat(2, 0)
    out = Normalise(Intensity("window", (-1000, 1000), (0.5, 0.0), (0.25, 1.0)), 2, where="x")(image)
    np.testing.assert_allclose(out[0].ravel(), [-2, -2, 0, 2, 2], atol=1e-6)
    np.testing.assert_allclose(out[1].ravel(), [0, 0, 0.5, 1, 1], atol=1e-6)


def test_zscore_uses_the_whole_volume_not_the_patch():
    image = np.random.default_rng(0).normal(50, 7, (1, 8, 8, 8)).astype(np.float32)
    normalise = Normalise(Intensity("zscore"), 1, where="x")
    expected = (image - image.mean()) / image.std()
    np.testing.assert_allclose(normalise(image[:, :2], whole_CDHW=image), expected[:, :2], atol=1e-5)


def test_a_constant_volume_becomes_zero():
    assert not Normalise(Intensity("zscore"), 1, where="x")(np.full((1, 2, 2, 2), 7, np.int16)).any()


def test_an_intensity_that_does_not_fit_the_channels_is_refused():
    with pytest.raises(InputError, match=r"x: intensity.mean has 3 values for 1 channels"):
        Normalise(Intensity("window", (0, 1), (0.0, 0.0, 0.0), (1.0,)), 1, where="x")
    with pytest.raises(InputError, match="low < high"):
        Normalise(Intensity("window", (1, 1)), 1, where="x")


def test_cut_beyond_every_side_keeps_each_channels_minimum():
    array = np.stack([np.full((2, 2, 2), 5), np.full((2, 2, 2), -3)])
    box = cut(array, (-1, -1, -1), (4, 4, 4), fill=None)
    assert (box[0] == 5).all()
    assert (box[1] == -3).all()
    zeros = cut(array, (-1, -1, -1), (4, 4, 4), fill=0)
    assert (zeros[:, 1:3, 1:3, 1:3] == array).all()
    assert np.count_nonzero(zeros) == 16


# ----------------------------------------------------------------------------------------------------------- volumes


def volume(shape: tuple[int, ...]) -> dict[str, Any]:
    return {
        "image": np.random.default_rng(0).random(shape, np.float32),
        "json": {"targets": {"label": 2}, "spacing_mm": [1.0, 1.0, 2.0]},
    }


def test_a_volume_without_options_stays_as_it_is():
    members = volume((1, 5, 6, 7))
    sample = make_stage(card("volume", LABEL), {}, training=True)("k", members, 0)
    np.testing.assert_array_equal(sample.views[IMAGE].numpy(), members["image"])
    assert sample.targets["label"] == 2


def test_size_crops_and_pads_and_resize_interpolates():
    stage = make_stage(card("volume", LABEL), {"size": [4, 8, 8], "resize": [8, 8, 16]}, training=False)
    sample = stage("k", volume((1, 6, 6, 8)), 0)
    assert sample.views[IMAGE].shape == (1, 8, 8, 16)
    assert sample.spacing_mm == (0.5, 1.0, 1.0)


def test_a_mask_is_cut_with_its_volume_and_resized_to_the_nearest_label():
    members = segmentation((6, 6, 8))
    members["mask"] = np.random.default_rng(0).choice(np.array([0, 2], np.uint8), (6, 6, 8))
    stage = make_stage(card("volume", MASK), {"size": [6, 6, 6], "resize": [12, 6, 18]}, training=False)
    sample = stage("k", members, 0)
    assert sample.views[IMAGE].shape == (1, 12, 6, 18)
    cropped = members["mask"][:, :, 1:7]
    np.testing.assert_array_equal(sample.targets["mask"].numpy(), cropped.repeat(2, axis=0).repeat(3, axis=2))
    assert sample.targets["mask"].dtype == torch.int64


def test_foreground_changes_nothing_where_there_is_no_mask():
    members = volume((1, 9, 9, 9))
    stages = [
        make_stage(card("volume", LABEL), {"patch_size": [4, 4, 4], "foreground": share}, training=True)
        for share in (0.0, 1.0)
    ]
    for seed in range(8):
        never, always = (stage("k", members, seed) for stage in stages)
        assert torch.equal(never.views[IMAGE], always.views[IMAGE])
        assert always.targets["label"] == 2


def test_training_crops_of_a_volume_move():
    stage = make_stage(card("volume", LABEL), {"size": [4, 4, 4]}, training=True)
    members = volume((1, 8, 8, 8))
    assert len({float(stage("k", members, seed).views[IMAGE].sum()) for seed in range(10)}) > 5


# ------------------------------------------------------------------------------------------------------------- video


@pytest.fixture(scope="module")
def clip() -> dict[str, Any]:
    toy = Toy(kind="video_classification", size=32, num_frames=12)
    raw = toy.read(toy.cases()[0])
    return {"video": raw.video, "json": {"targets": {"label": 1}, "num_frames": 12, "fps": 8.0}}


RGB = card("video", LABEL, Intensity("window", (0.0, 255.0), (0.5,), (0.5,)), ("r", "g", "b"))


def test_the_evaluation_clip_is_the_middle_of_the_video(clip):
    options = {"num_frames": 4, "frame_interval": 2, "crop_size": 24, "short_side": 32}
    sample = make_stage(RGB, options, training=False)("k", clip, 0)
    frames = decode_frames(clip["video"], [2, 4, 6, 8], short_side=32)[:, 4:28, 4:28]
    expected = (frames.transpose(3, 0, 1, 2) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(sample.views[IMAGE].numpy(), expected, atol=1e-5)
    assert sample.spacing_mm == (0.25, 1.0, 1.0)
    assert sample.targets["label"] == 1


def test_training_clips_move_in_time_and_space(clip):
    stage = make_stage(RGB, {"num_frames": 4, "crop_size": 24, "short_side": 32}, training=True)
    assert len({float(stage("k", clip, seed).views[IMAGE].sum()) for seed in range(10)}) > 5
    assert torch.equal(stage("k", clip, 3).views[IMAGE], stage("k", clip, 3).views[IMAGE])


def test_gamma_and_own_mean_and_std(clip):
    options = {"num_frames": 1, "crop_size": 32, "short_side": 32, "gamma": 0.5, "mean": 0.25, "std": [2.0, 2.0, 2.0]}
    sample = make_stage(RGB, options, training=False)("k", clip, 0)
    frame = decode_frames(clip["video"], [5], short_side=32)
    expected = (np.rint((frame / 255) ** 0.5 * 255) / 255 - 0.25) / 2
    np.testing.assert_allclose(sample.views[IMAGE].numpy(), expected.transpose(3, 0, 1, 2), atol=1e-5)


def test_a_short_clip_repeats_its_last_frame():
    assert frame_indices(5, 4, 2, None) == [0, 2, 4, 4]
    assert frame_indices(1, 3, 1, np.random.default_rng(0)) == [0, 0, 0]
    assert frame_indices(10, 4, 2, None) == [1, 3, 5, 7]


def test_training_clips_begin_anywhere_that_fits():
    draw = np.random.default_rng(0)
    assert {frame_indices(10, 4, 2, draw)[0] for _ in range(100)} == {0, 1, 2, 3}


# ----------------------------------------------------------------------------------------------------------- options


VOLUMES, VIDEOS = card("volume", MASK), card("video", LABEL)


@pytest.mark.parametrize(
    ("card", "options", "words"),
    [
        (VOLUMES, {"patchsize": [1, 1, 1]}, "close names: 'patch_size'"),
        (VOLUMES, {"patch_size": [8, 8]}, r"patch_size is \[8, 8\]; expected \[D, H, W\]"),
        (VOLUMES, {"patch_size": [8, 8, 8], "foreground": 2}, "foreground is 2"),
        (VOLUMES, {"size": [0, 8, 8]}, "size is 0; expected a whole number"),
        (VOLUMES, {"patch_size": [8, 8, 8], "size": [8, 8, 8]}, "patch_size cuts patches.*give one or the other"),
        (VOLUMES, {"patch_size": [8, 8, 8], "resize": [8, 8, 8]}, "patch_size cuts patches.*give one or the other"),
        (VIDEOS, {"crop_size": 8}, "num_frames missing; video needs it"),
        (VIDEOS, {"num_frames": 8, "crop_size": 224, "short_side": 128}, "at least crop_size, 224"),
        (VIDEOS, {"num_frames": True, "crop_size": 8}, "num_frames is True"),
        (VIDEOS, {"num_frames": 8, "crop_size": 8, "std": [0.0]}, "above 0"),
        (VIDEOS, {"num_frames": 8, "crop_size": 8, "mean": "x"}, "mean is 'x'"),
    ],
)
def test_options_that_make_no_sense_are_refused(card, options, words):
    with pytest.raises(InputError, match=words) as caught:
        sample_options(card, options, where="data.datasets.liver.sample")
    assert str(caught.value).startswith("data.datasets.liver.sample")


def test_options_tell_the_size_that_the_net_sees_and_the_window_of_evaluation():
    clip = sample_options(VIDEOS, {"num_frames": 8, "crop_size": 112})
    assert (clip.input_size, clip.window) == ((8, 112, 112), None)
    assert VideoSample(num_frames=8, crop_size=224).short_side == 256
    assert sample_options(VOLUMES, {}).input_size is None
    whole = sample_options(VOLUMES, {"size": [1, 2, 3], "resize": [4, 5, 6]})
    assert (whole.input_size, whole.window) == ((4, 5, 6), None)
    patches = sample_options(VOLUMES, {"patch_size": [4, 5, 6]})
    assert (patches.input_size, patches.window) == ((4, 5, 6), (4, 5, 6))
