"""Folders of NIfTI or DICOM: what is found, what a table adds, frames of 4-D files, and what is refused by name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from inflate3d.data.raw.examples import boxes, write_image
from inflate3d.datasets.dicom_folder import DicomFolder
from inflate3d.datasets.nifti_folder import NiftiFolder
from inflate3d.datasets.openmind import OpenMind
from inflate3d.errors import InputError
from inflate3d.targets import ClassTarget, ValueTarget


def volumes(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        write_image(root / name, boxes((1,)), seed=seed)
    return root


def nifti_folder(root: Path, **options: Any) -> NiftiFolder:
    return NiftiFolder(root, **{"modality": "mri", "val_fraction": 0.0, **options})


def test_every_nifti_below_the_folder_is_a_case_and_litter_is_none(tmp_path: Path) -> None:
    volumes(tmp_path, "a.nii", "deep/er/b.nii.gz", "deep/a.nii.gz", ".hidden/c.nii.gz", "deep/._b.nii.gz")
    (tmp_path / "notes.txt").write_text("no volume")
    dataset = nifti_folder(tmp_path)
    assert [c.key for c in dataset.cases()] == ["a", "deep-a", "deep-er-b"]
    assert dataset.card.targets == {}
    assert dataset.read(dataset.cases()[0]).targets == {}


def test_links_to_folders_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    volumes(tmp_path / "elsewhere", "a.nii.gz", "deep/b.nii.gz")
    root = tmp_path / "root"
    volumes(root, "c.nii.gz")
    (root / "far").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    assert [c.key for c in nifti_folder(root).cases()] == ["a", "b", "c"]
    DicomFolder.write_example(tmp_path / "elsewhere" / "d")
    assert [c.source[0][:9] for c in dicom_folder(root).cases()] == ["again/d/p"] * 4


def test_a_pattern_takes_some(tmp_path: Path) -> None:
    volumes(tmp_path, "s1/s1_T1w.nii.gz", "s1/s1_T2w.nii.gz", "s2/s2_T1w.nii.gz")
    assert [c.key for c in nifti_folder(tmp_path, pattern="**/*_T1w.nii.gz").cases()] == ["s1_T1w", "s2_T1w"]
    with pytest.raises(InputError, match=r"holds no .nii or .nii.gz that matches '\*\*/\*_FLAIR"):
        nifti_folder(tmp_path, pattern="**/*_FLAIR.nii.gz")


def test_a_group_pattern_keeps_patients_in_one_split(tmp_path: Path) -> None:
    volumes(tmp_path, *(f"sub-{i}/ses-{j}/sub-{i}_ses-{j}.nii.gz" for i in range(5) for j in range(2)))
    cases = nifti_folder(tmp_path, group_pattern="(sub-[^/]+)", val_fraction=0.4).cases()
    assert Counter(c.split for c in cases) == {"train": 6, "val": 4}
    assert {c.group for c in cases if c.split == "val"}.isdisjoint(c.group for c in cases if c.split == "train")
    with pytest.raises(InputError, match=r"group_pattern 'scan\(x\)' finds no \(group\) in 'sub-0/ses-0"):
        nifti_folder(tmp_path, group_pattern="scan(x)")
    with pytest.raises(InputError, match=r"group_pattern '\(' is no regular expression"):
        nifti_folder(tmp_path, group_pattern="(")


def test_a_table_gives_labels_and_numbers_by_path_or_name_and_the_rest_is_unknown(tmp_path: Path) -> None:
    volumes(tmp_path, "a/one.nii.gz", "b/two.nii.gz", "b/three.nii.gz", "b/four.nii.gz")
    (tmp_path / "t.csv").write_text("image;label;age\na/one.nii.gz;sick;50\ntwo.nii.gz;well;\nthree;well;61.5\n")
    dataset = nifti_folder(tmp_path, csv="t.csv", values="age:years")
    assert dataset.card.targets == {"label": ClassTarget(("sick", "well")), "age": ValueTarget("years")}
    found = {c.key: dataset.read(c).targets for c in dataset.cases()}
    assert found == {
        "one": {"label": "sick", "age": 50.0},
        "two": {"label": "well", "age": None},
        "three": {"label": "well", "age": 61.5},
        "four": {"label": None, "age": None},
    }


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("image,label\nfive.nii.gz,x\n", "t.csv line 2: no volume 'five.nii.gz' below the root"),
        ("image,label\none.nii.gz,x\none,y\n", "t.csv lines 2 and 3 are both of a/one.nii.gz"),
        ("image,label\ntwo.nii.gz,x\n", "'two.nii.gz' is the name of a/two.nii.gz, b/two.nii.gz; give the path"),
        ("image,lable\none,x\n", "unknown column 'lable'; close names: 'label'"),
        ("image,split\none,train\n", "gives splits, but none for a/two.nii.gz (2 in all)"),
        ("image,label\n,x\n", "no volume ''"),
    ],
)
def test_rows_that_do_not_fit_the_folder_are_named_by_line(tmp_path: Path, rows: str, words: str) -> None:
    volumes(tmp_path, "a/one.nii.gz", "a/two.nii.gz", "b/two.nii.gz")
    (tmp_path / "t.csv").write_text(rows)
    with pytest.raises(InputError) as caught:
        nifti_folder(tmp_path, csv="t.csv")
    assert words in str(caught.value)


# ----------------------------------------------------------------------------------------------------------------- 4-D


def cine(file: Path, frames: int) -> np.ndarray:
    """Write (X, Y, Z, T) of 5 x 4 x 3 voxels whose values tell the frame; return it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    array = np.arange(60 * frames, dtype=np.int16).reshape(5, 4, 3, frames, order="F")
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), file)
    return array


def test_frames_are_cases_of_one_group_or_channels_of_one_volume(tmp_path: Path) -> None:
    arrays = {name: cine(tmp_path / f"{name}.nii.gz", 3) for name in ("a", "b")}
    of_cases = nifti_folder(tmp_path, frames="cases", val_fraction=0.5)
    cases = of_cases.cases()
    assert [c.key for c in cases] == ["a-000", "a-001", "a-002", "b-000", "b-001", "b-002"]
    assert {len({c.split for c in cases if c.key[0] == name}) for name in "ab"} == {1}
    assert of_cases.card.input.channels == ("mri",)
    for case in cases:
        image = of_cases.read(case).image
        assert image is not None
        np.testing.assert_array_equal(image[0], arrays[case.key[0]][..., int(case.key[2:])].T)
    of_channels = nifti_folder(tmp_path)
    assert of_channels.card.input.channels == ("mri_0", "mri_1", "mri_2")
    image = of_channels.read(of_channels.cases()[1]).image
    assert image is not None
    np.testing.assert_array_equal(image, arrays["b"].T)


def test_as_many_frames_as_each_file_has_are_cases_but_channels_must_agree(tmp_path: Path) -> None:
    cine(tmp_path / "a.nii.gz", 2)
    cine(tmp_path / "b.nii.gz", 4)
    volumes(tmp_path, "c.nii.gz")
    counts = Counter(c.key[0] for c in nifti_folder(tmp_path, frames="cases").cases())
    assert counts == {"a": 2, "b": 4, "c": 1}
    dataset = nifti_folder(tmp_path)
    with pytest.raises(InputError, match=r"b: b.nii.gz gives 4 channels; expected 2 \(mri_0, mri_1\)"):
        dataset.read(dataset.cases()[1])
    with pytest.raises(InputError, match="unknown value of frames 'times'; allowed: 'cases', 'channels'"):
        nifti_folder(tmp_path, frames="times")


def test_a_file_that_cannot_be_read_stays_a_case_and_says_why(tmp_path: Path) -> None:
    cine(tmp_path / "a.nii.gz", 2)
    (tmp_path / "b.nii.gz").write_bytes(b"")
    (tmp_path / "c.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    (tmp_path / "d.nii.gz").write_bytes(b"\x1f\x8b\x08" + b"?" * 400)
    dataset = nifti_folder(tmp_path, frames="cases")
    assert [c.key for c in dataset.cases()] == ["a-000", "a-001", "b-000", "c-000", "d-000"]
    for case in dataset.cases()[2:]:
        with pytest.raises(InputError, match=rf"{case.key[0]}.nii.gz"):
            dataset.read(case)


# --------------------------------------------------------------------------------------------------------------- DICOM


def dicom_folder(root: Path, **options: Any) -> DicomFolder:
    return DicomFolder(root, **{"modality": "ct", "window": (-1000, 1000), "val_fraction": 0.0, **options})


def test_each_folder_of_slices_is_a_case_whatever_its_depth(tmp_path: Path) -> None:
    DicomFolder.write_example(tmp_path)
    (tmp_path / "patient0" / "report").mkdir()
    (tmp_path / "patient0" / "report" / "letter.pdf").write_bytes(b"%PDF")
    dataset = dicom_folder(tmp_path)
    assert [c.key for c in dataset.cases()] == ["series0", "series1", "series2", "series3"]
    sample = dataset.read(dataset.cases()[1])
    assert sample.spacing_mm == (2, 1, 1)
    assert sample.image is not None
    assert sample.image.shape == (1, 5, 12, 14)
    assert np.unique(sample.image).tolist() == [0, 300]


def test_the_series_of_the_root_itself_is_called_as_the_root(tmp_path: Path) -> None:
    DicomFolder.write_example(tmp_path)
    assert [c.key for c in dicom_folder(tmp_path / "patient0/study1/series1").cases()] == ["series1"]


def test_a_table_of_series_gives_labels_and_patients_stay_together(tmp_path: Path) -> None:
    dataset = DicomFolder(**DicomFolder.write_example(tmp_path))
    assert {c.key: dataset.read(c).targets["label"] for c in dataset.cases()} == {
        "series0": "dark",
        "series1": "bright",
        "series2": "dark",
        "series3": "bright",
    }
    assert Counter((c.group, c.split) for c in dataset.cases()).most_common(1)[0][1] == 2
    assert dataset.card.input.intensity.window == (-300.0, 300.0)


def test_two_series_in_one_folder_are_two_cases(tmp_path: Path) -> None:
    DicomFolder.write_example(tmp_path)
    one, other = tmp_path / "patient0/study1/series0", tmp_path / "patient0/study1/series1"
    for file in one.iterdir():
        file.rename(other / f"one_{file.name}")
    (tmp_path / "more.csv").write_text("image,label\n1.2.3.1,dark\npatient0/study1/series1/1.2.3.2,bright\n")
    dataset = dicom_folder(tmp_path, csv="more.csv", classes="dark,bright")
    cases = {case.key: case for case in dataset.cases()}
    assert list(cases) == ["1_2_3_1", "1_2_3_2", "series2", "series3"]
    for key, label, brightest in (("1_2_3_1", "dark", 0), ("1_2_3_2", "bright", 300)):
        sample = dataset.read(cases[key])
        assert (sample.targets["label"], sample.image.max()) == (label, brightest)


# ------------------------------------------------------------------------------------------------------------ OpenMind


def test_openmind_takes_images_without_their_masks_and_knows_the_technique(tmp_path: Path) -> None:
    dataset = OpenMind(**OpenMind.write_example(tmp_path))
    cases = dataset.cases()
    assert len(cases) == 8
    assert dataset.card.targets == {"label": ClassTarget(("T1w", "T2w"))}
    assert cases[1].key == "ds000030-sub-01-ses-T1-anat-sub-01_ses-T1_T2w"
    assert dataset.read(cases[1]).targets == {"label": "T2w"}
    assert {c.group for c in cases if c.split == "val"} < {
        f"ds{n}/sub-0{i}" for n in ("000030", "001486") for i in (1, 2)
    }
    assert Counter(c.split for c in cases) == {"train": 6, "val": 2}


def test_openmind_takes_one_technique(tmp_path: Path) -> None:
    OpenMind.write_example(tmp_path)
    assert len(OpenMind(tmp_path, technique=["T1w"]).cases()) == 4
    with pytest.raises(InputError, match=r"of \['FLAIR'\]; there are \['T1w', 'T2w'\]"):
        OpenMind(tmp_path, technique=["FLAIR"])
