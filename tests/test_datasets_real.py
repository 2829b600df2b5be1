"""The datasets on the real files beside the project: counts, quirks and splits as the sources state them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from inflate3d.contracts import AbstractDataset, Case
from inflate3d.data.raw.readers import read_volume
from inflate3d.data.shards.manifest import Manifest
from inflate3d.data.shards.reader import ShardReader
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.medmnist3d import MedMNIST3D
from inflate3d.datasets.modelnet10 import ModelNet10
from inflate3d.datasets.msd import MSD
from inflate3d.datasets.totalsegmentator import TotalSegmentator
from inflate3d.datasets.video_csv import VideoCSV
from inflate3d.datasets.video_folder import VideoFolder
from inflate3d.datasets.volume_csv import VolumeCSV
from inflate3d.errors import InputError

pytestmark = pytest.mark.data


def counts(dataset: AbstractDataset) -> dict[str, int]:
    return dict(Counter(c.split for c in dataset.cases()))


def find(dataset: AbstractDataset, key: str) -> Case:
    return next(c for c in dataset.cases() if c.key == key)


def test_hippocampus_builds_whole_with_its_quirks(shared_data: Path, tmp_path: Path) -> None:
    dataset = MSD(shared_data, task="Task04_Hippocampus", val_count=40)
    assert dataset.card.targets["mask"].names == ("background", "Anterior", "Posterior")
    assert (dataset.card.name, dataset.card.modality) == ("msd_hippocampus", "mri")
    assert (dataset.card.licence, dataset.card.commercial_use) == ("CC-BY-SA-4.0", True)
    manifest = build_shards(dataset, tmp_path / "shards", progress=False)
    assert (manifest.num_samples("train"), manifest.num_samples("val"), manifest.rejects) == (180, 40, ())
    # 43 images are stored as uint8 and the others as float32, of which many hold whole numbers; masks are uint8 all.
    reader = ShardReader(tmp_path / "shards", Manifest.load(tmp_path / "shards"))
    decoded = [reader.sample(s, i).decode() for s, e in enumerate(reader.entries) for i in range(e.samples)]
    assert {d["mask"].dtype for d in decoded} == {np.dtype("uint8")}
    assert {tuple(np.unique(d["mask"])) for d in decoded} == {(0, 1, 2)}
    assert all(d["json"]["spacing_mm"] == [1.0, 1.0, 1.0] for d in decoded)


def test_hippocampus_voxels_are_those_of_nibabel(shared_data: Path) -> None:
    nib = pytest.importorskip("nibabel")
    root = shared_data / "Task04_Hippocampus"
    dataset = MSD(root)
    for key in ("hippocampus_367", "hippocampus_001"):
        sample = dataset.read(find(dataset, key))
        assert sample.image is not None
        for array, folder in ((sample.image[0], "imagesTr"), (sample.targets["mask"], "labelsTr")):
            stored = nib.as_closest_canonical(nib.load(root / folder / f"{key}.nii.gz"))
            np.testing.assert_array_equal(array, np.asarray(stored.dataobj).transpose(2, 1, 0))


def test_adrenal_has_the_official_split_and_binary_shapes(shared_data: Path) -> None:
    dataset = MedMNIST3D(shared_data / "medmnist", subset="adrenal")
    assert counts(dataset) == {"train": 1188, "val": 98, "test": 298}
    assert dataset.card.modality == "mask"
    assert dataset.card.licence == "CC-BY-4.0"
    sample = dataset.read(find(dataset, "test_00297"))
    assert sample.image is not None
    assert sample.image.shape == (1, 28, 28, 28)
    assert set(np.unique(sample.image)) == {0, 255}


def test_modelnet10_has_3718_and_273_models_of_ten_classes(shared_data: Path) -> None:
    dataset = ModelNet10(shared_data / "modelnet10")
    assert counts(dataset) == {"train": 3718, "val": 273}
    labels = Counter(dataset.card.targets["label"].names[dataset.read(c).targets["label"]] for c in dataset.cases())
    # The counts of ModelNet10's official training set, by name: so the order of the names is right.
    assert labels == {
        "bathtub": 106,
        "bed": 515,
        "chair": 889,
        "desk": 200,
        "dresser": 200,
        "monitor": 465,
        "night_stand": 200,
        "sofa": 680,
        "table": 392,
        "toilet": 344,
    }
    assert not dataset.card.weights_may_be_published


def test_modelnet10_stands_upright_along_depth(shared_data: Path) -> None:
    dataset = ModelNet10(shared_data / "modelnet10")
    beds = [dataset.read(c) for c in dataset.cases()[:1500]]
    occupied = np.mean([s.image[0] for s in beds if s.image is not None and s.targets["label"] == 1], axis=0)
    extents = [np.count_nonzero(occupied.mean(axis=tuple({0, 1, 2} - {a})) > 0.02) for a in range(3)]
    assert extents[0] == min(extents)


def test_arid_is_split_by_scene_and_every_class_is_in_both(shared_data: Path, tmp_path: Path) -> None:
    dataset = VideoFolder(shared_data / "arid6", group_pattern=r"_(\d+)_\d+$")
    assert dataset.card.targets["label"].names == ("Jump", "Run", "Sit", "Stand", "Turn", "Walk")
    assert not dataset.card.weights_may_be_published
    cases = dataset.cases()
    scenes = {s: {re.findall(r"_(\d+)_", c.key)[0] for c in cases if c.split == s} for s in ("train", "val")}
    assert not scenes["train"] & scenes["val"]
    assert {(c.split, c.source[1]) for c in cases} == {(s, label) for s in ("train", "val") for label in range(6)}
    manifest = build_shards(dataset, tmp_path / "shards", progress=False)
    assert (manifest.num_samples(), manifest.rejects) == (150, ())


def test_every_codec_of_the_decode_folder_passes_as_a_clip(shared_data: Path, tmp_path: Path) -> None:
    clips = sorted(p for p in (shared_data / "decode").iterdir() if p.suffix in (".mp4", ".mkv", ".avi"))
    (tmp_path / "train.csv").write_text("\n".join(f"{p} {i % 2}" for i, p in enumerate(clips)))
    manifest = build_shards(VideoCSV(tmp_path, val_count=2), tmp_path / "shards", progress=False)
    assert (manifest.num_samples(), manifest.rejects) == (len(clips), ())


def test_a_dicom_series_is_one_case_of_a_csv(shared_data: Path, tmp_path: Path) -> None:
    series = shared_data / "dicom_ct"
    (tmp_path / "cases.csv").write_text(f"key,image,label\na,{series},x\nb,{series},y\n")
    dataset = VolumeCSV(tmp_path, modality="ct", val_count=0)
    sample = dataset.read(dataset.cases()[0])
    assert sample.image is not None
    assert sample.image.shape == (1, 17, 128, 88) or sample.image.shape == (1, 17, 88, 128)
    low, high = dataset.card.input.intensity.window
    assert -1100 < low < high < 3100


def test_forty_real_mask_files_become_one_mask(shared_data: Path, tmp_path: Path) -> None:
    masks = sorted((shared_data / "totalseg_example" / "masks").glob("*.nii.gz"))
    (tmp_path / "s0001").mkdir()
    (tmp_path / "s0001" / "segmentations").symlink_to(masks[0].parent)
    (tmp_path / "s0001" / "ct.nii.gz").symlink_to(masks[0])  # the CT of this example has a grid of its own
    (tmp_path / "meta.csv").write_text("image_id;split\ns0001;train\n")
    dataset = TotalSegmentator(tmp_path)
    assert len(dataset.card.targets["mask"].names) == 41
    found = dataset.read(dataset.cases()[0]).targets["mask"]
    expected = np.zeros_like(found)
    for index, file in enumerate(masks, start=1):
        np.copyto(expected, index, where=read_volume(file).array[0] > 0, casting="unsafe")
    np.testing.assert_array_equal(found, expected)
    (tmp_path / "s0001" / "ct.nii.gz").unlink()
    (tmp_path / "s0001" / "ct.nii.gz").symlink_to(shared_data / "totalseg_example" / "example_ct.nii.gz")
    with pytest.raises(InputError, match=r"s0001: mask .* beside ct.nii.gz"):
        dataset.read(dataset.cases()[0])
