"""Labels of masks: renamed, merged, left out, unannotated, or gathered from several files, by value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inflate3d.data.raw.examples import AFFINE, SHAPE_DHW, boxes, write_image, write_mask
from inflate3d.data.raw.labels import label_map
from inflate3d.data.raw.readers import write_nifti
from inflate3d.datasets.kits23 import KiTS23
from inflate3d.datasets.msd import MSD
from inflate3d.datasets.nnunet_raw import NnunetRaw
from inflate3d.datasets.totalsegmentator import TotalSegmentator
from inflate3d.errors import InputError
from inflate3d.targets import MaskTarget

VALUES = {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 7}


@pytest.mark.parametrize(
    ("wanted", "names", "becomes", "annotated"),
    [
        (None, "liver/right kidney/left kidney/spleen", {0: 0, 1: 1, 2: 2, 3: 3, 7: 4}, ""),
        ({"liver": 1, "kidney": [2, 3]}, "liver/kidney", {0: 0, 1: 1, 2: 2, 3: 2, 7: 0}, ""),
        ({"kidney": ["left kidney", 2]}, "kidney", {0: 0, 1: 0, 2: 1, 3: 1, 7: 0}, ""),
        ({"spleen": 7, "liver": "liver"}, "spleen/liver", {0: 0, 1: 2, 2: 0, 3: 0, 7: 1}, ""),
        (
            {"aorta": [], "spleen": 7, "colon": []},
            "aorta/spleen/colon",
            {0: 0, 1: 0, 2: 0, 3: 0, 7: 2},
            "background/spleen",
        ),
        ({"liver": 1, "spleen": []}, "liver/spleen", {0: 0, 1: 1, 2: 0, 3: 0, 7: 0}, "background/liver"),
        ({"background": [0, 1], "organ": [2, 3, 7]}, "organ", {0: 0, 1: 0, 2: 1, 3: 1, 7: 1}, ""),
    ],
)
def test_each_value_becomes_the_class_that_takes_it(
    wanted: Any, names: str, becomes: dict[int, int], annotated: str
) -> None:
    made = label_map(VALUES, wanted, where="set")
    assert made.target.names == ("background", *names.split("/"))
    assert dict(made.index_of) == becomes
    assert made.target == MaskTarget(made.target.names, tuple(annotated.split("/")) if annotated else ())


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"liver": 1, "organ": [1, 2]}, "set: labels gives 1 to 'liver' and to 'organ'"),
        ({"liver": [1], "organ": ["liver"]}, "set: labels gives 'liver' to 'liver' and to 'organ'"),
        ({"liver": 4}, "set: labels names 4, which is no label of this set; its labels: 0 background, 1 liver"),
        ({"liver": "livr"}, "unknown label 'livr'; close names: 'liver'"),
        ({"liver": True}, "labels names True"),
        ({"liver": 0}, "labels gives the background to 'liver'"),
        ({"liver": []}, "labels for one of them at least"),
        ({"liver": 1, "spleen": [], "background": [0, 7]}, "labels gives 'spleen' to 'background', and an empty list"),
        ({"kidney": [2, 3], "left kidney": []}, "labels gives 'left kidney' to 'kidney', and an empty list"),
        ({}, "labels for one of them at least"),
    ],
)
def test_labels_that_do_not_exist_or_are_taken_twice_are_refused(wanted: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        label_map(VALUES, wanted, where="set")
    assert words in str(caught.value)


def test_merged_labels_of_a_set_are_the_union_of_its_voxels(tmp_path: Path) -> None:
    KiTS23.write_example(tmp_path)
    case = KiTS23(tmp_path).cases()[0]
    plain = KiTS23(tmp_path).read(case).targets["mask"]
    merged = KiTS23(tmp_path, labels={"organ": 1, "lesion": ["tumor", 3]}).read(case).targets["mask"]
    np.testing.assert_array_equal(merged, np.array([0, 1, 2, 2], np.uint8)[plain])


def test_msd_and_nnunet_folders_take_the_option_too(tmp_path: Path) -> None:
    arguments = NnunetRaw.write_example(tmp_path / "n")
    dataset = NnunetRaw(**arguments, labels={"both": ["left", 2], "other": []})
    plain = NnunetRaw(**arguments)
    case = dataset.cases()[0]
    assert dataset.card.targets["mask"] == MaskTarget(("background", "both", "other"), ("background", "both"))
    np.testing.assert_array_equal(dataset.read(case).targets["mask"], plain.read(case).targets["mask"] > 0)
    arguments = MSD.write_example(tmp_path / "m")
    assert MSD(**arguments, labels={"cuboid": 1}).card.targets["mask"].names == ("background", "cuboid")
    with pytest.raises(InputError, match="msd Task99_Toy: unknown label 'bx'; close names: 'box'"):
        MSD(**arguments, labels={"cuboid": "bx"})


def test_a_value_without_a_class_is_refused_by_file(tmp_path: Path) -> None:
    KiTS23.write_example(tmp_path)
    write_mask(tmp_path / "dataset/case_00001/segmentation.nii.gz", boxes((1, 9)))
    dataset = KiTS23(tmp_path)
    with pytest.raises(
        InputError, match=r"case_00001: segmentation.nii.gz holds labels \[9\]; allowed: \[0, 1, 2, 3\]"
    ):
        dataset.read(dataset.cases()[1])


# ------------------------------------------------------------------------------------------- several mask files a case


@pytest.fixture
def total(tmp_path: Path) -> Path:
    TotalSegmentator.write_example(tmp_path)
    return tmp_path


def test_mask_files_are_gathered_by_name(total: Path) -> None:
    dataset = TotalSegmentator(total)
    assert dataset.card.targets["mask"].names == ("background", "kidney_left", "kidney_right", "liver")
    assert [case.split for case in dataset.cases()] == ["train", "train", "val", "test"]
    expected = np.zeros(SHAPE_DHW, np.uint8)
    expected[2:6, 3:9, 1:3], expected[2:6, 3:9, 3:5], expected[2:6, 3:9, 7:9] = 3, 1, 2
    np.testing.assert_array_equal(dataset.read(dataset.cases()[0]).targets["mask"], expected)


def test_mask_files_can_be_merged_and_left_out(total: Path) -> None:
    (total / "s0000/segmentations/liver.nii.gz").write_bytes(b"not needed, so not read")
    dataset = TotalSegmentator(total, labels={"kidney": ["kidney_left", "kidney_right"]})
    mask = dataset.read(dataset.cases()[0]).targets["mask"]
    assert np.unique(mask).tolist() == [0, 1]
    assert np.count_nonzero(mask) == 2 * 4 * 6 * 2


def test_of_two_files_that_claim_a_voxel_the_later_counts_and_it_is_told(total: Path) -> None:
    write_mask(total / "s0000/segmentations/kidney_left.nii.gz", boxes((1, 1)))
    dataset = TotalSegmentator(total)
    sample = dataset.read(dataset.cases()[0])
    assert sample.targets["mask"][2, 3, 1] == 3  # liver comes after kidney_left
    assert ("masks overlap", "48 voxels are in two mask files; the later file counts") in sample.noticed


def test_a_mask_file_that_lacks_or_is_extra_is_named(total: Path) -> None:
    write_mask(total / "s0001/segmentations/heart.nii.gz", boxes((1,)))
    (total / "s0002/segmentations/liver.nii.gz").unlink()
    dataset = TotalSegmentator(total)
    with pytest.raises(InputError, match=r"s0001: segmentations holds heart.nii.gz, the first case does not"):
        dataset.read(dataset.cases()[1])
    with pytest.raises(InputError, match=r"s0002: no file .*liver.nii.gz"):
        dataset.read(dataset.cases()[2])


def test_a_mask_file_with_other_values_or_on_another_grid_is_named(total: Path) -> None:
    write_mask(total / "s0000/segmentations/liver.nii.gz", boxes((2,)))
    write_nifti(total / "s0001/segmentations/liver.nii.gz", boxes((1,)), AFFINE + np.eye(4)[:, [3, 0, 1, 2]] * 3)
    dataset = TotalSegmentator(total)
    with pytest.raises(InputError, match=r"s0000: liver.nii.gz holds labels \[2\]; allowed: \[0, 1\]"):
        dataset.read(dataset.cases()[0])
    with pytest.raises(InputError, match=r"s0001: mask liver.nii.gz beside ct.nii.gz"):
        dataset.read(dataset.cases()[1])


def test_a_split_of_meta_csv_that_is_none_is_named_by_line(total: Path) -> None:
    table = (total / "meta.csv").read_text().replace(";val", ";valid")
    (total / "meta.csv").write_text(table)
    with pytest.raises(InputError, match=r"meta.csv line 4: unknown split 'valid'; close names: 'val'"):
        TotalSegmentator(total).cases()


def test_without_val_cases_some_of_train_are_val(total: Path) -> None:
    (total / "meta.csv").write_text((total / "meta.csv").read_text().replace(";val", ";train"))
    assert sorted(case.split for case in TotalSegmentator(total).cases()) == ["test", "train", "train", "val"]


def test_the_mri_release_is_mri_under_its_own_licence(total: Path) -> None:
    for case in ("s0000", "s0001", "s0002", "s0003"):
        write_image(total / case / "mri.nii.gz", boxes((1,)))
    card = TotalSegmentator(total, modality="mri").card
    assert (card.name, card.modality, card.input.intensity.mode) == ("totalsegmentator_mri", "mri", "zscore")
    assert card.commercial_use is False
    assert TotalSegmentator(total).card.commercial_use is True
