"""Published sets of volumes: the splits, groups, classes and values of each layout, and what is refused by name."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from inflate3d.data.raw.examples import boxes, write_image, write_mask
from inflate3d.data.raw.labelled_volumes import LabelledVolumes
from inflate3d.data.raw.readers import read_volume
from inflate3d.datasets.acdc import ACDC
from inflate3d.datasets.amos22 import AMOS22
from inflate3d.datasets.brats import BraTS
from inflate3d.datasets.btcv import BTCV
from inflate3d.datasets.flare22 import FLARE22
from inflate3d.datasets.kits23 import KiTS23
from inflate3d.datasets.lits import LiTS
from inflate3d.datasets.luna16 import LUNA16
from inflate3d.datasets.medmnist3d import MedMNIST3D
from inflate3d.datasets.word import WORD
from inflate3d.errors import InputError


def splits(dataset: LabelledVolumes) -> dict[str, str]:
    return {case.key: case.split for case in dataset.cases()}


def test_official_splits_are_kept(tmp_path: Path) -> None:
    AMOS22.write_example(tmp_path / "amos")
    WORD.write_example(tmp_path / "word")
    assert splits(AMOS22(tmp_path / "amos")) == {"amos_0001": "train", "amos_0004": "train", "amos_0008": "val"}
    assert splits(AMOS22(tmp_path / "amos", modality="mri")) == {"amos_0507": "train", "amos_0508": "val"}
    expected = {"word_0002": "train", "word_0003": "train", "word_0001": "val", "word_0014": "test"}
    assert splits(WORD(tmp_path / "word")) == expected  # word_0015 has no label


def test_a_split_file_decides_for_all(tmp_path: Path) -> None:
    AMOS22.write_example(tmp_path)
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": ["amos_0008"], "val": ["amos_0001"], "test": ["amos_0004"]}))
    dataset = AMOS22(tmp_path, split_file=str(file))
    assert splits(dataset) == {"amos_0001": "val", "amos_0004": "test", "amos_0008": "train"}


@pytest.mark.parametrize(
    ("made", "last"),
    [(AMOS22, (15, "prostate or uterus")), (BTCV, (13, "left adrenal gland")), (WORD, (16, "head of right femur"))],
)
def test_values_and_names_agree(tmp_path: Path, made: type[LabelledVolumes], last: tuple[int, str]) -> None:
    dataset = made(**made.write_example(tmp_path))
    names = dataset.card.targets["mask"].names
    assert (len(names) - 1, names[-1]) == last
    mask = dataset.read(dataset.cases()[0]).targets["mask"]
    assert mask[2, 3, 1] == 1  # the first column
    assert mask.max() == last[0]


@pytest.mark.parametrize(
    ("made", "keys"),
    [
        (BTCV, ["img0001", "img0002", "img0003", "img0004"]),
        (FLARE22, [f"FLARE22_Tr_{i:04d}" for i in range(1, 5)]),
        (KiTS23, ["case_00000", "case_00001", "case_00002", "case_00400"]),
        (LiTS, [f"volume-{i}" for i in range(4)]),
    ],
)
def test_cases_are_found_from_the_folder_or_the_one_above(
    tmp_path: Path, made: type[LabelledVolumes], keys: list[str]
) -> None:
    made.write_example(tmp_path / "set")
    (tmp_path / "set" / ".Trash").mkdir()
    inner = {BTCV: "RawData", FLARE22: "FLARE22_LabeledCase50", KiTS23: "dataset", LiTS: "."}[made]
    for root in (tmp_path / "set", tmp_path / "set" / inner):
        assert [case.key for case in made(root, val_count=1).cases()] == keys
        assert Counter(splits(made(root, val_count=1)).values()) == {"train": 3, "val": 1}


def test_lits_numbers_sort_as_numbers_and_pair_across_folders(tmp_path: Path) -> None:
    LiTS.write_example(tmp_path)
    mask = boxes((1, 2))
    write_image(tmp_path / "a" / "volume-10.nii", mask)
    write_mask(tmp_path / "masks" / "segmentation-10.nii", mask)
    dataset = LiTS(tmp_path)
    assert [case.key for case in dataset.cases()][-1] == "volume-10"
    np.testing.assert_array_equal(dataset.read(dataset.cases()[-1]).targets["mask"], mask)
    write_image(tmp_path / "b" / "volume-10.nii.gz", mask)
    with pytest.raises(InputError, match=r"lits: .* holds a/volume-10.nii and b/volume-10.nii.gz, which are one"):
        LiTS(tmp_path).cases()


def test_a_listed_case_without_its_files_is_rejected_by_name(tmp_path: Path) -> None:
    KiTS23.write_example(tmp_path)
    (tmp_path / "dataset/case_00000/imaging.nii.gz").unlink()
    dataset = KiTS23(tmp_path)
    with pytest.raises(InputError, match=r"case_00000: no file .*imaging.nii.gz"):
        dataset.read(dataset.cases()[0])


# --------------------------------------------------------------------------------------------------------- BraTS, ACDC


def test_brats_stacks_its_contrasts_and_the_last_label_is_the_third_class(tmp_path: Path) -> None:
    dataset = BraTS(**BraTS.write_example(tmp_path))
    sample = dataset.read(dataset.cases()[0])
    assert dataset.card.input.channels == ("t1", "t1 contrast", "t2", "flair")
    assert sample.image is not None
    bright = sample.image[:, 2:6, 3:9, 5:7].mean((1, 2, 3))  # label 4, times 20, 40, 60, 80
    np.testing.assert_allclose(bright, [80, 160, 240, 320], atol=5)
    assert np.unique(sample.targets["mask"]).tolist() == [0, 1, 2, 3]
    assert sample.targets["mask"][2, 3, 5] == 3


def brats_2023(root: Path, case: str, values: tuple[int, ...]) -> None:
    for ending in ("t1n", "t1c", "t2w", "t2f"):
        write_image(root / case / f"{case}-{ending}.nii.gz", boxes(values))
    write_mask(root / case / f"{case}-seg.nii.gz", boxes(values))


def test_brats_label_4_is_what_its_release_says(tmp_path: Path) -> None:
    for i, values in enumerate(((1, 2, 3), (1, 2, 3, 4), (1, 3))):
        brats_2023(tmp_path, f"BraTS-GLI-0000{i}-000", values)
    brats_2023(tmp_path, "BraTS-GLI-00000-001", (1, 2, 3))
    of_2023, of_2024 = BraTS(tmp_path, release="2023", val_count=1), BraTS(tmp_path, release="2024", val_count=1)
    cases = of_2023.cases()
    assert [c.group for c in cases] == ["BraTS-GLI-00000", "BraTS-GLI-00000", "BraTS-GLI-00001", "BraTS-GLI-00002"]
    with pytest.raises(InputError, match=r"BraTS-GLI-00001-000-seg.nii.gz holds labels \[4\]; allowed: \[0, 1, 2, 3\]"):
        of_2023.read(cases[2])
    assert of_2024.card.targets["mask"].names[-1] == "resection cavity"
    assert of_2024.read(cases[2]).targets["mask"].max() == 4
    with pytest.raises(InputError, match="holds no case"):
        BraTS(tmp_path, release="2021").cases()


def test_brats_case_without_segmentation_is_listed_and_refused_not_passed_over(tmp_path: Path) -> None:
    arguments = BraTS.write_example(tmp_path)
    (tmp_path / "BraTS2021_00003/BraTS2021_00003_seg.nii.gz").rename(tmp_path / "BraTS2021_00003/W39_Segm.nii.gz")
    dataset = BraTS(**arguments)
    assert len(dataset.cases()) == 4
    with pytest.raises(InputError, match=r"no file .*BraTS2021_00003_seg.nii.gz"):
        dataset.read(dataset.cases()[2])


def test_acdc_gives_both_phases_of_a_patient_with_its_diagnosis(tmp_path: Path) -> None:
    dataset = ACDC(**ACDC.write_example(tmp_path))
    cases = dataset.cases()
    assert [c.key for c in cases][:2] == ["patient001_ED", "patient001_ES"]
    assert {c.key for c in cases if c.split == "test"} == {"patient101_ED", "patient101_ES"}
    assert Counter(c.split for c in cases) == {"train": 4, "val": 2, "test": 2}
    sample = dataset.read(cases[1])
    assert sample.targets["diagnosis"] == "MINF"
    assert dataset.card.targets["diagnosis"].encode("MINF") == 1
    np.testing.assert_array_equal(sample.targets["mask"], boxes((1, 2, 3)))
    expected = read_volume(tmp_path / "training/patient001/patient001_frame12.nii.gz")
    np.testing.assert_array_equal(sample.image, expected.array)


@pytest.mark.parametrize(
    ("was", "now", "words"),
    [
        ("ES: 12\n", "", "Info.cfg: ES is None; expected the number of a frame"),
        ("ED: 1\n", "ED: first\n", "Info.cfg: ED is 'first'"),
        ("Group: MINF", "Group: MNF", "unknown Group 'MNF'; close names: 'MINF'"),
    ],
)
def test_acdc_info_that_is_wrong_is_named(tmp_path: Path, was: str, now: str, words: str) -> None:
    ACDC.write_example(tmp_path)
    file = tmp_path / "training/patient001/Info.cfg"
    file.write_text(file.read_text().replace(was, now))
    with pytest.raises(InputError) as caught:
        ACDC(tmp_path).cases()
    assert words in str(caught.value)


# ------------------------------------------------------------------------------------------------------ LUNA16, 64^3


def test_luna16_cuts_the_candidate_out_of_its_place(tmp_path: Path) -> None:
    dataset = LUNA16(**LUNA16.write_example(tmp_path))
    nodule = next(case for case in dataset.cases() if case.source.label == 1)
    sample = dataset.read(nodule)
    assert sample.image is not None
    assert sample.image.shape == (1, 12, 12, 12)
    assert sample.spacing_mm == (1, 1, 1)
    # The world place of the bright ball's middle, from the affine alone, in RAS.
    bright = np.argwhere(sample.image[0] > -200).mean(0)
    place = np.asarray(sample.affine) @ np.array([*bright[::-1], 1])
    np.testing.assert_allclose(place[:3], [84, 96, -30], atol=0.51)
    assert sample.targets == {"label": 1}


def test_luna16_is_air_beyond_the_scan_and_refuses_what_lies_outside(tmp_path: Path) -> None:
    LUNA16.write_example(tmp_path)
    rows = "1.3.6.1.4.1.0,-99,-119,-50,0\n1.3.6.1.4.1.1,-200,-119,-50,1\n1.3.6.1.4.1.2,-84,-96,-30,0\n"
    (tmp_path / "candidates_V2.csv").write_text("seriesuid,coordX,coordY,coordZ,class\n" + rows)
    dataset = LUNA16(tmp_path, size_mm=12, val_subset=1)
    cases = dataset.cases()
    assert [c.split for c in cases] == ["train", "train", "val"]
    corner = dataset.read(cases[0]).image
    assert corner is not None
    assert corner[0, 0, 0, 0] == -1024
    with pytest.raises(InputError, match="lies outside its scan"):
        dataset.read(cases[1])


def test_luna16_takes_every_nodule_and_as_many_others_as_wanted(tmp_path: Path) -> None:
    LUNA16.write_example(tmp_path)
    rows = [f"1.3.6.1.4.1.{i % 2},-80,-100,{-40 + i // 8},{int(i % 25 == 0)}" for i in range(50)]
    text = "\n".join(["seriesuid,coordX,coordY,coordZ,class", *rows])
    (tmp_path / "candidates_V2.csv").write_text(text)

    def taken(**options: int | None) -> list[tuple[str, int]]:
        return [(c.source.scan[-1], c.source.label) for c in LUNA16(tmp_path, **options).cases()]  # type: ignore[arg-type]

    assert Counter(taken(negatives_per_scan=3)) == {("0", 1): 1, ("1", 1): 1, ("0", 0): 3, ("1", 0): 3}
    assert len(taken(negatives_per_scan=None)) == 50
    assert taken(negatives_per_scan=3) == taken(negatives_per_scan=3)


@pytest.mark.parametrize("row", ["1.2,a,1,2,0", "1.2,0,1,2,3", "1.2,0,nan,2,1"])
def test_luna16_rows_that_are_wrong_are_named_by_line(tmp_path: Path, row: str) -> None:
    (tmp_path / "candidates_V2.csv").write_text(f"seriesuid,coordX,coordY,coordZ,class\n1.2,0,0,0,1\n{row}\n")
    with pytest.raises(InputError, match=r"candidates_V2.csv line 3"):
        LUNA16(tmp_path).cases()


def test_a_metaimage_pair_reads_as_its_single_file(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetOrigin((7.0, 8.0, 9.0))
    for name, packed in (("a.mha", False), ("raw.mhd", False), ("packed.mhd", True)):
        sitk.WriteImage(image, str(tmp_path / name), packed)
    single, *pairs = (read_volume(tmp_path / name) for name in ("a.mha", "raw.mhd", "packed.mhd"))
    for pair in pairs:
        np.testing.assert_array_equal(pair.array, single.array)
        assert pair.affine == single.affine


@pytest.mark.parametrize(("name", "packed"), [("a.raw", False), ("a.zraw", True)])
def test_a_metaimage_pair_that_is_not_whole_is_named(tmp_path: Path, name: str, packed: bool) -> None:
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 999, (5, 6, 7)).astype(np.int16))
    sitk.WriteImage(image, str(tmp_path / "a.mhd"), packed)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"truncated|too short"):
        read_volume(tmp_path / "a.mhd")
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=rf"a.mhd: .*{name}"):
        read_volume(tmp_path / "a.mhd")


def test_medmnist_at_64_reads_its_own_file_and_voxel_size(tmp_path: Path) -> None:
    arrays = {}
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        arrays[f"{split}_images"] = np.arange(count, dtype=np.uint8)[:, None, None, None] + np.zeros(
            (64,) * 3, np.uint8
        )
        arrays[f"{split}_labels"] = np.arange(count, dtype=np.uint8)[:, None]
    np.savez_compressed(tmp_path / "adrenalmnist3d_64.npz", **arrays)  # type: ignore[arg-type]
    dataset = MedMNIST3D(tmp_path, subset="adrenal", size=64)
    sample = dataset.read(dataset.cases()[1])
    assert sample.image is not None
    assert sample.image.shape == (1, 64, 64, 64)
    assert (sample.image == 1).all()
    assert sample.targets == {"label": 1}
    assert sample.spacing_mm == (1.0, 1.0, 1.0)
    with pytest.raises(InputError, match=r"adrenalmnist3d.npz"):
        MedMNIST3D(tmp_path, subset="adrenal", size=28)
