"""Toy data: a case depends on its name and seed alone, and its label is what it shows."""

from __future__ import annotations

import numpy as np
import pytest
from inflate3d.contracts import AbstractDataset, RawSample
from inflate3d.data.samples.frames import decode_frames
from inflate3d.datasets.toy import Toy


def read_all(dataset: AbstractDataset) -> dict[str, RawSample]:
    return {case.key: dataset.read(case) for case in dataset.cases()}


@pytest.mark.parametrize(
    "kind", ["volume_segmentation", "volume_classification", "video_classification", "volume_targets"]
)
def test_toy_case_depends_on_seed_and_name_alone(kind: str) -> None:
    few, many = Toy(kind=kind, num_train=3, num_val=2), Toy(kind=kind, num_train=9, num_val=4)
    other = Toy(kind=kind, num_train=3, num_val=2, seed=1)
    for case in few.cases():
        a, b, c = few.read(case), many.read(case), other.read(case)
        assert a.video == b.video
        assert list(a.targets) == list(b.targets) == list(few.card.targets)
        for name, value in a.targets.items():
            np.testing.assert_array_equal(value, b.targets[name])
        if a.image is not None:
            np.testing.assert_array_equal(a.image, b.image)
            assert c.image is not None
            assert (a.image != c.image).any()
        else:
            assert a.video != c.video


def test_toy_blobs_are_bright_where_the_mask_says() -> None:
    dataset = Toy(kind="volume_segmentation")
    samples = read_all(dataset).values()
    image = np.stack([s.image[0] for s in samples if s.image is not None])
    mask = np.stack([s.targets["mask"] for s in samples])
    means = [image[mask == label].mean() for label in range(3)]
    np.testing.assert_allclose(means, [0, 400, 200], atol=5)
    assert all((mask == label).any() for label in range(3))


def test_toy_square_moves_where_its_label_says() -> None:
    dataset = Toy(kind="video_classification", num_train=16, num_val=4)
    for sample in read_all(dataset).values():
        assert sample.video is not None
        frames = decode_frames(sample.video, range(16)).astype(float).mean(-1)
        ys, xs = zip(*(np.argwhere(f > 130).mean(0) for f in frames), strict=True)
        steps = np.median(np.diff(ys)), np.median(np.diff(xs))
        direction = {"left": (0, -2), "right": (0, 2), "up": (-2, 0), "down": (2, 0)}
        names = dataset.card.targets["label"].names
        np.testing.assert_allclose(steps, direction[names[sample.targets["label"]]], atol=0.6)


def test_toy_targets_tell_of_one_shape() -> None:
    dataset = Toy(kind="volume_targets", num_train=9, num_val=3)
    for sample in read_all(dataset).values():
        assert sample.image is not None
        shape = sample.targets["mask"] == 1
        assert sample.image[0][shape].mean() > 200 > 50 > sample.image[0][~shape].mean()
        assert sample.targets["volume"] == shape.sum() / 1000  # voxels of a cubic millimetre
    assert {s.targets["shape"] for s in read_all(dataset).values()} == {0, 1, 2}
