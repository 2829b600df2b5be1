"""Raw layouts of volumes as people really have them: variants of each format, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inflate3d.contracts import AbstractDataset, Intensity, RawSample
from inflate3d.data.raw.readers import write_nifti
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.medmnist3d import MedMNIST3D
from inflate3d.datasets.modelnet10 import ModelNet10
from inflate3d.datasets.msd import MSD
from inflate3d.datasets.nnunet_raw import NnunetRaw
from inflate3d.datasets.volume_csv import VolumeCSV
from inflate3d.errors import InputError
from inflate3d.targets import ClassTarget, MaskTarget, ValueTarget


def read_all(dataset: AbstractDataset) -> dict[str, RawSample]:
    return {case.key: dataset.read(case) for case in dataset.cases()}


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ----------------------------------------------------------------------------------------------------------------- msd


@pytest.fixture
def msd_root(tmp_path: Path) -> Path:
    return Path(MSD.write_example(tmp_path)["root"]) / "Task99_Toy"


def test_msd_takes_the_task_folder_itself_and_ignores_files_it_does_not_list(msd_root: Path) -> None:
    (msd_root / "imagesTr" / "._toy_000.nii.gz").write_bytes(b"left by macOS")
    assert [c.key for c in MSD(msd_root).cases()] == [f"toy_{i:03d}" for i in range(6)]


def test_msd_task_that_is_misspelt_gets_the_close_name(msd_root: Path) -> None:
    with pytest.raises(InputError, match=r"no folder .*Task99_Toi.*close names: 'Task99_Toy'"):
        MSD(msd_root.parent, task="Task99_Toi")
    with pytest.raises(InputError, match="give `task`"):
        MSD(msd_root.parent)


def test_msd_task_with_four_channels_puts_them_first(msd_root: Path) -> None:
    modality = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    image = np.arange(4 * 12 * 14 * 16, dtype=np.int16).reshape(4, 12, 14, 16)
    for file in (msd_root / "imagesTr").iterdir():
        write_nifti(file, image, np.diag([2.0, 2, 2, 1]))
    edit_json(msd_root / "dataset.json", modality=modality)
    dataset = MSD(msd_root)
    assert dataset.card.input.channels == ("flair", "t1w", "t1gd", "t2w")
    assert dataset.card.input.intensity.mode == "zscore"
    np.testing.assert_array_equal(read_all(dataset)["toy_000"].image, image)


def test_msd_ct_takes_a_window_in_hu(msd_root: Path) -> None:
    edit_json(msd_root / "dataset.json", modality={"0": "CT"})
    card = MSD(msd_root).card
    assert (card.modality, card.input.intensity.window) == ("ct", (-175.0, 250.0))
    lung = msd_root.rename(msd_root.with_name("Task06_Lung"))
    assert MSD(lung).card.input.intensity.window == (-1000.0, 400.0)
    assert MSD(lung, window=[-50, 50]).card.input.intensity.window == (-50.0, 50.0)


def test_msd_mri_takes_a_window_too_and_else_a_zscore(msd_root: Path) -> None:
    assert MSD(msd_root).card.input.intensity == Intensity("zscore")
    assert MSD(msd_root, window=[0, 900]).card.input.intensity == Intensity("window", (0.0, 900.0))


def test_msd_resamples_image_and_mask_together(msd_root: Path) -> None:
    dataset = MSD(msd_root, spacing_mm=[4, 2, 2])
    sample = read_all(dataset)["toy_000"]
    assert dataset.card.input.spacing_mm == sample.spacing_mm == (4.0, 2.0, 2.0)
    assert sample.image is not None
    mask = sample.targets["mask"]
    assert sample.image.shape[1:] == mask.shape == (6, 14, 16)
    assert set(np.unique(mask)) == {0, 1}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"0": "background", "2": "box"}, "without gaps"),
        ({"0": "background"}, "at least two"),
        ({"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order is None"),
        ({"background": 0, "box": 1, "Ignore": 2}, "'ignore', in small letters"),
    ],
)
def test_labels_that_cannot_be_classes_are_refused(msd_root: Path, labels: dict, message: str) -> None:
    edit_json(msd_root / "dataset.json", labels=labels)
    with pytest.raises(InputError, match=message):
        _ = MSD(msd_root).card


# ---------------------------------------------------------------------------------------------------------- nnunet_raw


@pytest.fixture
def nnunet_root(tmp_path: Path) -> Path:
    return Path(NnunetRaw.write_example(tmp_path)["root"])


def test_nnunet_stacks_the_channel_files_and_finds_the_test_cases(nnunet_root: Path) -> None:
    dataset = NnunetRaw(nnunet_root)
    samples = read_all(dataset)
    assert all(s.image is not None and s.image.shape == (2, 10, 12, 14) for s in samples.values())
    image, mask = samples["p0_scan0"].image, samples["p0_scan0"].targets["mask"]
    assert image is not None
    assert image[0][mask == 2].mean() > 6
    assert image[1][mask == 2].mean() < -6
    assert [c.key for c in dataset.cases() if c.split == "test"] == ["p9_scan0"]


def test_nnunet_first_version_reads_alike(nnunet_root: Path) -> None:
    content = {"modality": {"0": "T1", "1": "T2"}, "labels": {"0": "background", "1": "left", "2": "right"}}
    (nnunet_root / "dataset.json").write_text(json.dumps(content))
    card = NnunetRaw(nnunet_root).card
    assert (card.input.channels, card.targets["mask"].names) == (("t1", "t2"), ("background", "left", "right"))


def test_nnunet_measures_the_ct_window_on_the_foreground(nnunet_root: Path) -> None:
    edit_json(nnunet_root / "dataset.json", channel_names={"0": "CT", "1": "CT"})
    for file in (nnunet_root / "imagesTr").iterdir():
        image = np.full((10, 12, 14), -1000, np.int16)
        image[2:9, 3:8, 3:8] = 60 if "_0000" in file.name else 40
        write_nifti(file, image, np.diag([1.0, 1, 3, 1]))
    card = NnunetRaw(nnunet_root, val_count=0).card
    assert card.modality == "ct"
    assert card.input.intensity.window == (40.0, 60.0)


def test_nnunet_asks_for_the_modality_that_channel_names_hide(nnunet_root: Path) -> None:
    edit_json(nnunet_root / "dataset.json", channel_names={"0": "image", "1": "other"})
    with pytest.raises(InputError, match="give modality"):
        _ = NnunetRaw(nnunet_root).card
    assert NnunetRaw(nnunet_root, modality="em").card.modality == "em"


def test_nnunet_reads_nrrd_by_its_file_ending(nnunet_root: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    expected = read_all(NnunetRaw(nnunet_root))["p0_scan0"]
    for file in sorted(nnunet_root.rglob("*.nii.gz")):
        sitk.WriteImage(sitk.ReadImage(str(file)), str(file).removesuffix(".nii.gz") + ".nrrd")
        file.unlink()
    edit_json(nnunet_root / "dataset.json", file_ending=".nrrd")
    sample = read_all(NnunetRaw(nnunet_root))["p0_scan0"]
    np.testing.assert_array_equal(sample.image, expected.image)
    np.testing.assert_array_equal(sample.targets["mask"], expected.targets["mask"])


def test_nnunet_channels_of_unlike_shape_are_refused(nnunet_root: Path) -> None:
    write_nifti(nnunet_root / "imagesTr" / "p0_scan0_0001.nii.gz", np.zeros((9, 12, 14)), np.diag([1.0, 1, 3, 1]))
    dataset = NnunetRaw(nnunet_root)
    with pytest.raises(
        InputError,
        match=r"_0001.nii.gz beside .*_0000.nii.gz is \(9, 12, 14\)",
    ):
        dataset.read(dataset.cases()[0])


def test_a_group_pattern_that_finds_nothing_is_refused(nnunet_root: Path) -> None:
    with pytest.raises(InputError, match=r"finds no \(group\) in 'p0_scan0'"):
        NnunetRaw(nnunet_root, group_pattern="patient(.)").cases()
    with pytest.raises(InputError, match=r"group_pattern '\(' is not a regular expression"):
        NnunetRaw(nnunet_root, group_pattern="(")


# ----------------------------------------------------------------------------------------------- medmnist3d, modelnet10


def test_medmnist_names_are_forgiving_and_unknown_ones_get_a_close_name(tmp_path: Path) -> None:
    root = MedMNIST3D.write_example(tmp_path)["root"]
    for name in ("adrenal", "AdrenalMNIST3D"):
        assert MedMNIST3D(root, subset=name).card.targets["label"].names == ("normal", "hyperplasia")
    with pytest.raises(InputError, match="close names: 'adrenalmnist3d'"):
        MedMNIST3D(root, subset="adrenaline")
    with pytest.raises(InputError, match=r"no file .*organmnist3d\.npz"):
        MedMNIST3D(root, subset="organ")
    with pytest.raises(InputError, match=r"adrenalmnist3d_64\.npz"):
        MedMNIST3D(root, subset="adrenal", size=64)


def test_medmnist_spacing_follows_the_stated_field_of_view(tmp_path: Path) -> None:
    root = tmp_path / "adrenalmnist3d_64.npz"
    shutil.copy(Path(MedMNIST3D.write_example(tmp_path)["root"]) / "adrenalmnist3d.npz", root)
    assert MedMNIST3D(tmp_path, subset="adrenal", size=64).card.input.spacing_mm == (1.0, 1.0, 1.0)
    assert MedMNIST3D(tmp_path, subset="adrenal").card.input.spacing_mm == (64 / 28,) * 3


def test_npz_that_is_cut_short_or_lacks_an_array_is_refused(tmp_path: Path) -> None:
    file = Path(MedMNIST3D.write_example(tmp_path)["root"]) / "adrenalmnist3d.npz"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"adrenalmnist3d\.npz cannot be read"):
        MedMNIST3D(file, subset="adrenal").cases()
    np.savez(file, images=np.zeros(3))
    with pytest.raises(InputError, match="has no array 'train_labels'"):
        MedMNIST3D(file, subset="adrenal").cases()


def test_modelnet_never_uses_the_masked_test_labels(tmp_path: Path) -> None:
    dataset = ModelNet10(**ModelNet10.write_example(tmp_path))
    assert Counter(c.split for c in dataset.cases()) == {"train": 20, "val": 10}
    assert {s.targets["label"] for s in read_all(dataset).values()} == set(range(10))


# ---------------------------------------------------------------------------------------------------------- volume_csv


@pytest.fixture
def csv_root(tmp_path: Path) -> Path:
    return Path(VolumeCSV.write_example(tmp_path)["root"])


def test_volume_csv_with_masks_has_a_mask_target(csv_root: Path) -> None:
    write_nifti(csv_root / "mask.nii.gz", np.ones((10, 12, 14), np.uint8), np.diag([1.5, 1.5, 2.5, 1]))
    lines = ["image,mask,split", "images/scan_0.nii.gz,mask.nii.gz,train", "images/scan_1.nii.gz,mask.nii.gz,val"]
    (csv_root / "cases.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match="give classes"):
        VolumeCSV(csv_root, modality="mri")
    dataset = VolumeCSV(csv_root, modality="mri", classes="background,organ")
    assert dict(dataset.card.targets) == {"mask": MaskTarget(("background", "organ"))}
    assert {c.key: c.split for c in dataset.cases()} == {"scan_0": "train", "scan_1": "val"}
    assert all(s.targets["mask"].all() for s in read_all(dataset).values())


def test_volume_csv_with_label_mask_and_numbers_has_each_as_a_target(csv_root: Path) -> None:
    write_nifti(csv_root / "mask.nii.gz", np.ones((10, 12, 14), np.uint8), np.diag([1.5, 1.5, 2.5, 1]))
    rows = ["old,mask.nii.gz,41.7,", ",mask.nii.gz,,3", "young,mask.nii.gz,7,-1.5"]
    lines = [f"images/scan_{i}.nii.gz,{row}" for i, row in enumerate(rows)]
    (csv_root / "cases.csv").write_text("\n".join(["image,label,mask,age,score", *lines]))
    dataset = VolumeCSV(csv_root, modality="ct", classes="background,organ", values="age:years,score", val_count=0)
    assert dict(dataset.card.targets) == {
        "label": ClassTarget(("old", "young")),
        "mask": MaskTarget(("background", "organ")),
        "age": ValueTarget("years"),
        "score": ValueTarget(),
    }
    found = [{k: v for k, v in s.targets.items() if k != "mask"} for s in read_all(dataset).values()]
    assert found == [
        {"label": "old", "age": 41.7, "score": None},
        {"label": None, "age": None, "score": 3.0},
        {"label": "young", "age": 7.0, "score": -1.5},
    ]
    (csv_root / "cases.csv").write_text("image,age\nimages/scan_0.nii.gz,old\n")
    with pytest.raises(InputError, match=r"line 2, images/scan_0.nii.gz: age is 'old'; expected a number"):
        VolumeCSV(csv_root, modality="ct", values="age:years", val_count=0).cases()


def test_volume_csv_of_images_alone_is_unlabelled(csv_root: Path) -> None:
    (csv_root / "cases.csv").write_text("image\nimages/scan_0.nii.gz\nimages/scan_1.nii.gz\n")
    dataset = VolumeCSV(csv_root, modality="ct", val_count=1)
    assert dict(dataset.card.targets) == {}
    assert [c.split for c in dataset.cases()].count("val") == 1
    assert all(s.targets == {} for s in read_all(dataset).values())


def test_volume_csv_joins_channels_and_keeps_the_stated_key(csv_root: Path) -> None:
    pair = "images/scan_0.nii.gz;images/scan_1.nii.gz"
    (csv_root / "cases.csv").write_text(f"key,image,label\na,{pair},x\nb,{pair},y\n")
    dataset = VolumeCSV(csv_root, modality="mri", channels="t1,t2", val_count=0)
    sample = read_all(dataset)["a"]
    assert sample.image is not None
    assert sample.image.shape[0] == len(dataset.card.input.channels) == 2


def test_volume_csv_orders_numeric_classes_as_numbers(csv_root: Path) -> None:
    rows = [f"k{i},images/scan_0.nii.gz,{label}" for i, label in enumerate((10, 9, 2))]
    (csv_root / "cases.csv").write_text("\n".join(["key,image,label", *rows]))
    assert VolumeCSV(csv_root, modality="mri").card.targets["label"].names == ("2", "9", "10")


def test_volume_csv_reads_npy_without_anatomy(csv_root: Path) -> None:
    np.save(csv_root / "a.npy", np.ones((4, 5, 6), np.float32))
    (csv_root / "cases.csv").write_text("key,image,label\na,a.npy,x\nb,a.npy,y\n")
    dataset = VolumeCSV(csv_root, modality="mask", val_count=0)
    assert dataset.card.input.orientation is None
    assert dataset.card.input.intensity.window == (0.0, 1.0)
    image = read_all(dataset)["a"].image
    assert image is not None
    assert image.shape == (1, 4, 5, 6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na,b\n", "no column 'image'"),
        ("image,lable\na,b\n", "unknown column 'lable'; close names: 'label'"),
        ("image,label\na,b,c\n", "line 2: 3 values for 2 columns"),
        ("image,label\n", "lists no case"),
        ("image,mask\na,b\nc,\n", "no mask for c; fill the column in every row"),
        ("image,label,mask\na,b,c\n", "give classes: background,liver"),
        ("image,label,split\na,x,train\nb,y,vla\n", "unknown split 'vla'"),
        ("image,label\na.npy,x\nb.npy,y\na.npy,y\n", "lines 2 and 4 are both the case 'a.npy'"),
        ("image,label\na.npy,x\n,y\n", "line 3: no image"),
        ("image,label\na.npy;,x\n", "line 2: 'a.npy;' holds an empty path"),
    ],
)
def test_volume_csv_faults_are_named(csv_root: Path, text: str, message: str) -> None:
    (csv_root / "cases.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        VolumeCSV(csv_root, modality="mri").cases()


def test_volume_csv_label_outside_stated_classes_is_refused(csv_root: Path) -> None:
    with pytest.raises(InputError, match="unknown class 'dark'"):
        VolumeCSV(csv_root, modality="ct", classes=["bright", "dim"]).cases()


def test_nnunet_files_may_be_listed_and_its_json_written_by_windows(nnunet_root: Path) -> None:
    expected = read_all(NnunetRaw(nnunet_root, val_count=0))
    content = json.loads((nnunet_root / "dataset.json").read_text())
    elsewhere = (nnunet_root / "imagesTr").rename(nnunet_root / "elsewhere")
    content["dataset"] = {
        name: {"images": [f"elsewhere/{name}_{i:04d}.nii.gz" for i in (0, 1)], "label": f"labelsTr/{name}.nii.gz"}
        for name in sorted({p.name[:8] for p in elsewhere.iterdir()})
    }
    content["file_ending"] = "nii.gz"
    text = json.dumps(content, indent=1).replace("\n", "\r\n")
    (nnunet_root / "dataset.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = read_all(NnunetRaw(nnunet_root, val_count=0))
    assert found.keys() == expected.keys()
    for key, sample in found.items():
        np.testing.assert_array_equal(sample.image, expected[key].image)
    content["dataset"]["p0_scan0"] = {"images": "x"}
    (nnunet_root / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"lists 'p0_scan0' as .*; expected images and label"):
        NnunetRaw(nnunet_root).cases()


def test_nnunet_folders_that_are_not_whole_are_refused(nnunet_root: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message):
            read_all(NnunetRaw(nnunet_root))

    images, labels = nnunet_root / "imagesTr", nnunet_root / "labelsTr"
    kept = (images / "p1_scan0_0000.nii.gz").rename(nnunet_root / "kept")
    refused(r"no file .*p1_scan0_0000")  # its second channel is still there
    kept.rename(images / "p1_scan0_0000.nii.gz")
    shutil.copy(images / "p1_scan0_0000.nii.gz", images / "p1_scan0_0002.nii.gz")
    refused("imagesTr holds p1_scan0_0002.nii.gz, but dataset.json names 2 channels")
    (images / "p1_scan0_0002.nii.gz").unlink()
    shutil.copy(labels / "p1_scan0.nii.gz", labels / "p7_scan0.nii.gz")
    refused("labelsTr holds 'p7_scan0', imagesTr does not")
    (labels / "p7_scan0.nii.gz").unlink()
    edit_json(nnunet_root / "dataset.json", numTraining=7)
    refused("states numTraining 7, but there are 6 training cases")
    edit_json(nnunet_root / "dataset.json", numTraining=6)
    test = nnunet_root / "labelsTs" / "p9_scan0.nii.gz"
    test.unlink()
    test.symlink_to("nowhere")
    refused("p9_scan0.*: a link to nowhere, which is not there")


def test_volume_csv_calls_files_of_one_name_by_their_folders(csv_root: Path) -> None:
    for i in (1, 2):
        (csv_root / f"patient{i}").mkdir()
        write_nifti(csv_root / f"patient{i}" / "image.nii.gz", np.full((3, 4, 5), i, np.int16))
        folder = csv_root / f"1.3.6.1.4.1.14519.5.2.1.{i}"
        folder.mkdir()
    rows = ["patient1/image.nii.gz,x", "patient2/image.nii.gz,y"]
    (csv_root / "cases.csv").write_text("\n".join(["image,label", *rows]))
    samples = read_all(VolumeCSV(csv_root, modality="mri", val_count=0))
    assert {k: int(s.image.max()) for k, s in samples.items() if s.image is not None} == {
        "patient1-image": 1,
        "patient2-image": 2,
    }
    (csv_root / "cases.csv").write_text("image,label\n1.3.6.1.4.1.14519.5.2.1.1,x\n1.3.6.1.4.1.14519.5.2.1.2,y\n")
    keys = [case.key for case in VolumeCSV(csv_root, modality="mri", val_count=0).cases()]
    assert keys == ["1_3_6_1_4_1_14519_5_2_1_1", "1_3_6_1_4_1_14519_5_2_1_2"]


def test_volume_csv_says_which_cases_lack_a_label(csv_root: Path) -> None:
    (csv_root / "cases.csv").write_text("image,label\nimages/scan_0.nii.gz,x\nimages/scan_1.nii.gz,\n")
    samples = read_all(VolumeCSV(csv_root, modality="ct", val_count=0, window=[0, 1]))
    assert ("unlabelled", "label not stated") in samples["scan_1"].noticed
    assert not any(kind == "unlabelled" for kind, _ in samples["scan_0"].noticed)


@pytest.mark.parametrize("number", ["1_000", "nan", "inf", "1,5", "0x10", "1 2"])
def test_volume_csv_takes_no_number_by_guess(csv_root: Path, number: str) -> None:
    (csv_root / "cases.csv").write_text(f"image;age\nimages/scan_0.nii.gz;{number}\n")
    with pytest.raises(InputError, match=r"line 2, .*: age is .*; expected a number such as 1\.5"):
        VolumeCSV(csv_root, modality="ct", values="age", val_count=0).cases()


def test_a_build_in_which_nothing_can_be_read_says_why(csv_root: Path) -> None:
    (csv_root / "images" / "scan_0.nii.gz").write_bytes(b"\x1f\x8bx")
    (csv_root / "cases.csv").write_text("image,label\nimages/scan_0.nii.gz,x\n")
    dataset = VolumeCSV(csv_root, modality="mri", val_count=0)
    with pytest.raises(InputError, match=r"no case could be read\n.*1 cases rejected.*\n.*scan_0\.nii\.gz"):
        build_shards(dataset, csv_root / "out", max_rejects=2, progress=False)
