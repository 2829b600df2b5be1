"""One notion of the same grid: the same voxels in any axes are the same, up to a tenth of a voxel."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from inflate3d.contracts import DatasetCard, InputSpec, Intensity
from inflate3d.data.raw.pairs import check_pair
from inflate3d.data.raw.readers import read_volume
from inflate3d.data.raw.volumes import read_volume_case
from inflate3d.errors import InputError
from inflate3d.evaluation.prediction.case_scores import CaseScores
from inflate3d.targets import MaskTarget

SHAPE = (8, 9, 10)
ALL_AXES = ["".join(c) for axes in itertools.permutations(("LR", "PA", "IS")) for c in itertools.product(*axes)]


def card(channels: tuple[str, ...] = ("mri",), spacing: Any = None) -> DatasetCard:
    spec = InputSpec(channels, spacing, "RAS", Intensity("zscore"))
    words = dict.fromkeys(("name", "title", "modality", "url", "licence", "citation"), "x")
    rights: dict[str, Any] = {"commercial_use": None, "weights_may_be_published": False}
    return DatasetCard(
        media="volume", targets={"mask": MaskTarget(("background", "a", "b"))}, input=spec, **words, **rights
    )


def save(path: Path, array: np.ndarray, affine: Any, codes: str | None = None) -> Path:
    image = nib.Nifti1Image(array, affine)
    if codes is not None:
        change = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
        image = image.as_reoriented(change)
    nib.save(image, path)
    return path


def labels() -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:5, 3:7, 1:4], mask[6, 2:8, 5:] = 1, 2
    return mask


def oblique(degrees: float = 17.0) -> np.ndarray:
    t = np.deg2rad(degrees)
    turn = np.array([[np.cos(t), -np.sin(t), 0], [np.sin(t), np.cos(t), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-0.8, -0.8, 2.0])
    affine[:3, 3] = (11, -7, 30)
    return affine


def read(images: list[Path], mask: Path | None = None, spacing: Any = None) -> Any:
    chosen = card(tuple(f"c{i}" for i in range(len(images))), spacing)
    return read_volume_case(images, chosen, where="case a", masks={} if mask is None else {"mask": mask})


@pytest.mark.parametrize("codes", ALL_AXES)
def test_mask_and_channels_in_any_axes_are_turned_to_their_image(tmp_path: Path, codes: str) -> None:
    affine = oblique()
    first = save(tmp_path / "i.nii", 100 * labels().astype(np.int16), affine)
    second = save(tmp_path / "j.nii", 7 * labels().astype(np.int16), affine, codes)
    sample = read([first, second], save(tmp_path / "m.nii", labels(), affine, codes))
    np.testing.assert_array_equal(sample.image[0], 100 * sample.targets["mask"].astype(np.int16))
    np.testing.assert_array_equal(sample.image[1], 7 * sample.targets["mask"].astype(np.int16))
    assert sample.targets["mask"].sum() == labels().sum()


@pytest.mark.parametrize("codes", ["RAS", "SAR", "IPL"])
def test_masks_in_other_axes_are_resampled_with_their_image(tmp_path: Path, codes: str) -> None:
    affine = oblique()
    image = save(tmp_path / "i.nii", labels().astype(np.int16), affine)
    same = read([image], save(tmp_path / "m.nii", labels(), affine), (1.5, 1.1, 1.1))
    other = read([image], save(tmp_path / "n.nii", labels(), affine, codes), (1.5, 1.1, 1.1))
    np.testing.assert_array_equal(same.targets["mask"], other.targets["mask"])
    assert same.affine == other.affine


@pytest.mark.parametrize("degrees", [45, 45 - 1e-5, 45 + 1e-5, 44.999, 135, -45])
def test_headers_rounded_to_both_sides_of_a_tie_are_one_grid(tmp_path: Path, degrees: float) -> None:
    image = save(tmp_path / "i.nii", labels().astype(np.int16), oblique(degrees))
    sample = read([image], save(tmp_path / "m.nii", labels(), oblique(degrees + 2e-5)))
    np.testing.assert_array_equal(sample.image[0], sample.targets["mask"])


def changed(affine: np.ndarray, how: str) -> np.ndarray:
    other = affine.copy()
    if how == "moved":
        other[0, 3] += 0.5
    elif how == "half a voxel":
        other[:3, 3] += 0.5 * other[:3, 2]
    elif how == "spacing":
        other[:3, :3] *= 1.1
    elif how == "turned":
        t = np.deg2rad(3)
        other[:3, :3] = np.array([[np.cos(t), -np.sin(t), 0], [np.sin(t), np.cos(t), 0], [0, 0, 1]]) @ other[:3, :3]
    elif how == "sheared":
        other[:3, 2] += 0.2 * other[:3, 0]
    elif how == "mirrored":
        other[:3, 0] *= -1
    return other


@pytest.mark.parametrize("how", ["moved", "half a voxel", "spacing", "turned", "sheared", "mirrored"])
def test_another_grid_is_refused_with_the_distance(tmp_path: Path, how: str) -> None:
    affine = oblique()
    image = save(tmp_path / "i.nii", labels().astype(np.int16), affine)
    other = save(tmp_path / "o.nii", labels(), changed(affine, how))
    for files, mask, role in (([image], other, "mask"), ([image, other], None, "channel")):
        with pytest.raises(
            InputError, match=rf"case a: {role} o.nii beside i.nii lies up to [\d.]+ mm away; at most 0"
        ):
            read(files, mask)


def test_a_tenth_of_a_voxel_at_the_corners_is_the_limit(tmp_path: Path) -> None:
    affine = np.diag([0.5, 0.5, 6.0, 1.0])
    image = save(tmp_path / "i.nii", labels().astype(np.int16), affine)
    for apart_mm, fits in ((0.049, True), (0.051, False)):
        affine[0, 3] = apart_mm
        mask = save(tmp_path / "m.nii", labels(), affine)
        if fits:
            np.testing.assert_array_equal(read([image], mask).targets["mask"], labels().transpose(2, 1, 0))
            continue
        with pytest.raises(InputError, match=r"0\.051 mm away; at most 0\.05 mm \(0\.1 voxel\)"):
            read([image], mask)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SAR", "PIR"])
@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 1.0)])
def test_a_npy_mask_lies_on_its_image_as_stored(tmp_path: Path, codes: str, spacing: Any) -> None:
    image = save(tmp_path / "i.nii.gz", 100 * labels().astype(np.int16), np.diag([2.0, 2, 2, 1]), codes)
    stored = nib.load(image).get_fdata() / 100
    np.save(tmp_path / "m.npy", stored.astype(np.uint8).transpose(2, 1, 0))
    sample = read([image], tmp_path / "m.npy", spacing)
    inside = sample.targets["mask"] > 0
    assert sample.image[0][inside].min() >= (100 if spacing is None else 1)
    assert ("place unstated", "a .npy is taken to lie as its image is stored") in sample.noticed
    np.save(tmp_path / "m.npy", stored.astype(np.uint8))
    if len(set(stored.shape)) > 1 and stored.shape != stored.shape[::-1]:
        with pytest.raises(InputError, match="it must hold the voxels as the image's file does"):
            read([image], tmp_path / "m.npy", spacing)


def test_a_npy_and_a_placed_volume_are_no_pair(tmp_path: Path) -> None:
    image = read_volume(save(tmp_path / "i.nii", labels().astype(np.int16), np.diag([-1.0, -1, 1, 1])))
    np.save(tmp_path / "m.npy", labels().transpose(2, 1, 0))
    with pytest.raises(InputError, match="only one of image and mask says where its voxels lie"):
        check_pair(image, read_volume(tmp_path / "m.npy", is_mask=True), ["background", "a", "b"], where="x")


@pytest.mark.parametrize("codes", ALL_AXES[::5])
def test_labels_in_any_axes_score_the_same(tmp_path: Path, codes: str) -> None:
    affine = oblique()
    save(tmp_path / "same.nii", labels(), affine)
    save(tmp_path / "turned.nii", labels(), affine, codes)
    image = read_volume(save(tmp_path / "i.nii", labels().astype(np.int16), affine), orientation=None)
    guess = labels()
    guess[2, 3:7, 1:4] = 0
    rows = []
    for name in ("same", "turned"):
        scores = CaseScores(
            tmp_path / f"{name}.nii", ["c"], MaskTarget(("background", "a", "b")), tmp_path / "dice.csv"
        )
        scores.add("c", guess, image)
        rows.append(scores.rows["c"])
    assert rows[0] == rows[1]
    assert rows[0]["dice"] == pytest.approx([2 * 24 / (24 + 36), 1.0])
    save(tmp_path / "moved.nii", labels(), changed(affine, "moved"))
    scores = CaseScores(tmp_path / "moved.nii", ["c"], MaskTarget(("background", "a", "b")), tmp_path / "dice.csv")
    with pytest.raises(InputError, match=r"--labels: .*moved.nii lies up to 0.5 mm away"):
        scores.add("c", guess, image)
