"""Planning: a folder is recognised, measured and turned into values that an independent rule gives too."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from inflate3d.cli.check import check_config
from inflate3d.cli.config import load_config
from inflate3d.cli.fingerprint_table import rows
from inflate3d.data.raw.examples import boxes, write_dicom_series, write_image
from inflate3d.data.raw.modality import guess_modality
from inflate3d.data.raw.readers import write_nifti
from inflate3d.datasets.nifti_folder import NiftiFolder
from inflate3d.discover import find
from inflate3d.errors import InputError
from inflate3d.inflation.plan import resolve_plan
from inflate3d.planning import starts
from inflate3d.planning.chosen import Chosen, as_yaml, values_of
from inflate3d.planning.fingerprint import Fingerprint, measure
from inflate3d.planning.geometry import median_shape, planned_patch, planned_spacing
from inflate3d.planning.layouts import Layout, known_layouts, recognised
from inflate3d.planning.net_cost import NetCost, measure_fitting_net, measure_net
from inflate3d.planning.plan import Budget, plan_run, planned_grid
from inflate3d.planning.starts import fitting_head
from inflate3d.sample import Triple
from inflate3d.targets import ClassTarget, MaskTarget

SHIPPED = "tf_efficientnet_lite0_3d.v2"
BY_EXAMPLE = ("nnunet_raw", "msd", "volume_csv", "video_folder", "mask_folder")
PLAN = {"name": "isotropic", "kernels": [None], "strides": [1, 2, 2, 2, 2], "head_pool": None}
NET = NetCost((16, 16, 16), 1, 4_000_000, bytes_per_voxel=1000, seconds_per_voxel=1e-5, overhead_s=0.1, plan=PLAN)
BUDGET = Budget(memory_bytes=16 * 10**9, minutes=30, cores=2)


def class_folders(root: Path, *, split: bool = False) -> Path:
    """Six NIfTI volumes of two classes, a folder each, perhaps below train and val."""
    for i in range(6):
        part = ("train", "val")[i % 3 == 2] if split else ""
        name, gain = ("bright", 80) if i % 2 else ("dark", -80)
        write_image(root / part / name / f"scan{i}.nii.gz", boxes((1, 1)), seed=i, gain=gain)
    return root


def example(name: str, root: Path) -> Path:
    """The folder of a dataset's own example, as a user would name it."""
    told = find("datasets", name).load().write_example(root)
    return Path(told["root"]) / told.get("task", "")


def planned(folder: Path, *, net: NetCost = NET, budget: Budget = BUDGET, **known: Any) -> dict[str, Any]:
    """The values that a folder's plan holds."""
    layout = recognised(folder)
    found = replace(measure(layout.dataset()), **known)
    return values_of(plan_of(found, layout, net, budget))


def cubes(depth: int, height: int, width: int) -> dict[str, Any]:
    """What a fingerprint says of five volumes of one size, 1 mm."""
    return {"shapes_DHW": ((depth, height, width),) * 5, "spacings_mm": ((1.0, 1.0, 1.0),) * 5}


def plan_of(found: Fingerprint, layout: Layout, net: NetCost, budget: Budget, **options: Any) -> Any:
    given = {"model": SHIPPED, "start_head": None, "output": "runs/mine", **options}
    return plan_run(found, layout, planned_grid(found, layout), net, budget, **given)


# ------------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("name", BY_EXAMPLE)
def test_a_folder_is_read_by_the_dataset_whose_layout_it_has(name: str, tmp_path: Path) -> None:
    layout = recognised(example(name, tmp_path))
    assert layout.plug_in.name == name
    assert layout.dataset().cases()


@pytest.mark.parametrize("split", [False, True])
def test_a_folder_of_volumes_a_class_has_its_classes_and_its_splits(split: bool, tmp_path: Path) -> None:
    layout = recognised(class_folders(tmp_path, split=split))
    dataset = layout.dataset()
    assert layout.plug_in.name == "nifti_folder"
    assert dataset.card.targets["label"] == ClassTarget(("bright", "dark"))
    for case in dataset.cases():
        names = case.source[0].split("/")
        assert dataset.read(case).targets["label"] == names[-2]
        assert not split or case.split == names[0]


@pytest.mark.parametrize("study", ["", "study1"])
def test_a_folder_of_dicom_series_a_class_has_its_classes_and_keeps_patients_together(
    study: str, tmp_path: Path
) -> None:
    for i in range(8):
        name = "nodule" if i % 2 else "healthy"
        series = (
            tmp_path / name / f"patient{i // 2}" / study / f"series{i}" if study else tmp_path / name / f"series{i}"
        )
        scan = np.full((4, 8, 8), 100 if i % 2 else -900, np.int16)
        write_dicom_series(series, scan, series_uid=f"1.2.3.{i + 1}", patient=f"patient{i // 2}")
    layout = recognised(tmp_path)
    dataset = layout.dataset()
    assert (layout.plug_in.name, layout.arguments["modality"]) == ("dicom_folder", "ct")
    assert dataset.card.targets["label"] == ClassTarget(("healthy", "nodule"))
    for case in dataset.cases():
        assert dataset.read(case).targets["label"] == case.source[0].split("/")[0]
    if study:
        splits = {(case.group, case.split) for case in dataset.cases()}
        assert len(splits) == len({group for group, _ in splits}) == 4


def test_dicom_folders_of_a_patient_each_are_no_classes(tmp_path: Path) -> None:
    for i in range(4):
        write_dicom_series(
            tmp_path / f"patient{i // 2}" / f"series{i}",
            np.zeros((4, 8, 8), np.int16),
            series_uid=f"1.2.3.{i + 1}",
            patient=f"patient{i // 2}",
        )
    with pytest.raises(InputError, match="none of the layouts that are recognised"):
        recognised(tmp_path)


def test_a_class_pattern_that_finds_nothing_names_the_file(tmp_path: Path) -> None:
    class_folders(tmp_path)
    with pytest.raises(InputError, match=r"label_pattern '\(x\+\)' finds no \(group\) in 'bright/scan1.nii.gz'"):
        NiftiFolder(tmp_path, modality="mri", label_pattern="(x+)")


def test_every_recogniser_is_tried_here() -> None:
    built_in = {p.name for p in known_layouts() if p.module.startswith("inflate3d.datasets")}
    assert built_in == {*BY_EXAMPLE, "nifti_folder", "dicom_folder"}


def test_a_folder_that_nothing_reads_lists_what_would_be_read(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"it holds notes.txt") as fault:
        recognised(tmp_path)
    assert all(f"  {p.name}: {p.summary}" in str(fault.value) for p in known_layouts())
    assert "--dataset NAME" in str(fault.value)


def test_images_beside_masks_of_the_same_names_are_no_two_classes(tmp_path: Path) -> None:
    folder = example("mask_folder", tmp_path)
    layout = recognised(folder)
    assert layout.arguments["classes"] == ["background", "label_1", "label_2"]
    assert (layout.arguments["images"], layout.arguments["masks"]) == ("images", "masks")
    (folder / "masks" / "p0_scan0.nii.gz").unlink()
    with pytest.raises(InputError, match=r"p0_scan0.nii.gz is in one of images and masks alone; each image needs a"):
        recognised(folder).dataset()


def test_of_two_layouts_the_user_chooses(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / "cases.csv").write_text("image,label\nbright/scan1.nii.gz,a\ndark/scan0.nii.gz,b\n")
    with pytest.raises(InputError, match="nifti_folder or volume_csv; choose: --dataset nifti_folder"):
        recognised(tmp_path)
    assert recognised(tmp_path, name="volume_csv").arguments["csv"] == "cases.csv"


@pytest.mark.parametrize(
    ("values", "modality"), [((0, 1), "mask"), ((-1024, 0, 300), "ct"), ((0, 40, 900), "mri"), ((-3.5, 0, 2), "mri")]
)
def test_the_modality_is_guessed_from_the_values(values: tuple[float, ...], modality: str, tmp_path: Path) -> None:
    array = np.resize(np.array(values, np.float32), (4, 4, 4))
    write_nifti(tmp_path / "a.nii.gz", array, np.eye(4))
    assert guess_modality([tmp_path / "a.nii.gz"]) == modality


# --------------------------------------------------------------------------------------------------- spacing and patch


def test_the_spacing_is_the_median_where_volumes_are_nearly_isotropic() -> None:
    spacings = [(3.0, 1.0, 1.0), (2.0, 1.5, 1.0), (2.5, 0.8, 1.2)]
    assert planned_spacing([(10, 100, 100)] * 3, spacings)[0] == (2.5, 1.0, 1.0)


def test_a_thick_axis_takes_the_tenth_percentile_as_in_nnunet() -> None:
    along = [5.0, 5.0, 5.0, 6.0, 8.0, 3.0]
    spacing, reason = planned_spacing([(20, 200, 200)] * 6, [(z, 0.7, 0.8) for z in along])
    assert spacing == (np.percentile(along, 10), 0.7, 0.8)
    assert "10th percentile along D" in reason
    # as many voxels along the thick axis as along the others: no anisotropy, so the median
    assert planned_spacing([(200, 200, 200)] * 6, [(z, 0.7, 0.8) for z in along])[0] == (5.0, 0.7, 0.8)


def test_the_tenth_percentile_is_never_finer_than_the_other_axes() -> None:
    spacing, _ = planned_spacing([(10, 100, 100)] * 5, [(z, 1.0, 1.0) for z in (0.5, 5, 5, 5, 5)])
    assert spacing == pytest.approx((2.3, 1.0, 1.0))  # between 0.5 and 5
    spacing, _ = planned_spacing([(10, 100, 100)] * 9, [(z, 1.0, 1.0) for z in (0.5, 0.5, 0.5, 4, 4, 4, 4, 4, 4)])
    assert spacing == pytest.approx((1.00001, 1.0, 1.0))


def test_the_median_volume_is_that_after_resampling() -> None:
    shapes, spacings = [(10, 40, 40), (20, 20, 30), (30, 30, 30)], [(2.0, 1, 1), (1, 2, 1), (1, 1, 1)]
    assert median_shape(shapes, spacings, (1.0, 1.0, 1.0)) == (20, 40, 30)
    assert median_shape(shapes, spacings, None) == (20, 30, 30)


def test_a_patch_is_within_the_volume_and_the_room_and_a_multiple_of_the_stride() -> None:
    draw = np.random.default_rng(0)
    for _ in range(300):
        median = tuple(int(n) for n in draw.integers(4, 300, 3))
        stride = tuple(int(2**n) for n in draw.integers(0, 6, 3))
        most = float(draw.integers(100, 10**6))
        patch = planned_patch(median, stride, most_voxels=most)  # type: ignore[arg-type]
        assert all(p <= n for p, n in zip(patch, median, strict=True))
        assert all(p % s == 0 or p == n < s for p, n, s in zip(patch, median, stride, strict=True))
        assert prod(patch) <= most or all(p <= s for p, s in zip(patch, stride, strict=True))


def test_a_patch_shrinks_where_it_covers_most_of_the_volume() -> None:
    assert planned_patch((35, 51, 35), (16, 16, 16), most_voxels=1e9) == (32, 48, 32)
    assert planned_patch((64, 300, 300), (16, 16, 16), most_voxels=64 * 128 * 128) == (32, 176, 176)
    assert planned_patch((12, 64, 64), (16, 16, 16), most_voxels=1e9) == (12, 64, 64)


# --------------------------------------------------------------------------------------------------------------- plans


def test_the_plan_of_hippocampus_like_volumes_is_the_recipes(tmp_path: Path) -> None:
    known = {
        "shapes_DHW": ((35, 51, 35),) * 5,
        "spacings_mm": ((1.0, 1.0, 1.0),) * 5,
        "splits": {"train": 208, "val": 52},
    }
    values = planned(example("msd", tmp_path), **known)
    (dataset,) = values["data"]["datasets"].values()
    assert dataset["sample"] == {"patch_size": [32, 48, 32], "foreground": 0.5}
    assert dataset["batch_size"] == 4
    assert dataset["build"]["init_args"]["spacing_mm"] == [1.0, 1.0, 1.0]
    # 30 minutes, a fifth of them for validation; a step takes .1 s and 1e-5 s a voxel
    assert values["trainer"]["max_steps"] == int(0.8 * 1800 / (0.1 + 4 * 32 * 48 * 32 * 1e-5))
    assert values["trainer"]["max_time"] == "00:00:30:00"


def test_few_cases_want_few_steps_and_a_batch_of_them(tmp_path: Path) -> None:
    values = planned(example("volume_csv", tmp_path))
    (dataset,) = values["data"]["datasets"].values()
    train = len([c for c in recognised(tmp_path).dataset().cases() if c.split == "train"])
    assert dataset["batch_size"] == train < 16
    assert values["trainer"]["max_steps"] == 200  # 30 passes would be fewer


def test_short_time_and_little_memory_make_small_batches_and_then_small_patches(tmp_path: Path) -> None:
    known = {**cubes(128, 128, 128), "splits": {"train": 99}}
    folder = example("msd", tmp_path)
    for budget in (Budget(8 * 10**9, 30), Budget(10**12, 3)):
        (dataset,) = planned(folder, budget=budget, **known)["data"]["datasets"].values()
        voxels = dataset["batch_size"] * prod(dataset["sample"]["patch_size"])
        assert dataset["batch_size"] >= 2
        assert voxels * NET.bytes_per_voxel <= budget.memory_bytes / 2
        assert 0.1 + voxels * NET.seconds_per_voxel <= budget.minutes * 60 * 0.8 / 50
        assert voxels < 4 * 128**3


def test_a_net_that_does_not_fit_into_memory_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not fit into 0.1 GB of free memory: it has 4 M parameters.*--model"):
        planned(example("msd", tmp_path), budget=Budget(10**8, 30))


def test_large_volumes_to_classify_are_made_smaller_so_that_four_fit(tmp_path: Path) -> None:
    values = planned(example("volume_csv", tmp_path), **cubes(300, 400, 400), splits={"train": 50})
    (dataset,) = values["data"]["datasets"].values()
    size, resize = dataset["sample"]["size"], dataset["sample"]["resize"]
    assert 4 * prod(resize) * NET.bytes_per_voxel <= BUDGET.memory_bytes / 2 < 4 * prod(size) * NET.bytes_per_voxel
    assert np.allclose(np.array(resize) / size, resize[0] / size[0], rtol=0.02)


def test_a_batch_that_costs_no_more_than_the_overhead_is_taken_in_any_time(tmp_path: Path) -> None:
    slow_start = replace(NET, overhead_s=4.0)
    known = {**cubes(20, 20, 20), "splits": {"train": 99, "val": 9}}
    values = planned(example("volume_csv", tmp_path), net=slow_start, budget=Budget(10**10, 1), **known)
    (dataset,) = values["data"]["datasets"].values()
    assert dataset["batch_size"] == 16  # 16 * 20**3 * 1e-5 s are 1.3 s
    assert values["trainer"]["max_steps"] == int(48 / (4 + 1.28))


@pytest.mark.parametrize(
    ("minutes", "clip"),
    [(60, (16, 4, 112)), (5, (8, 8, 112)), (2.25, (8, 8, 80)), (0.25, (8, 8, 64))],
)
def test_clips_lose_frames_first_and_then_their_edges(
    minutes: float, clip: tuple[int, int, int], tmp_path: Path
) -> None:
    known = {"shapes_DHW": ((90, 240, 320),) * 5, "splits": {"train": 50}}
    values = planned(example("video_folder", tmp_path), budget=Budget(10**12, minutes), **known)
    (dataset,) = values["data"]["datasets"].values()
    assert tuple(dataset["sample"].values()) == clip


@pytest.mark.parametrize("name", [*BY_EXAMPLE, "nifti_folder"])
def test_the_written_config_says_what_was_planned_and_passes_every_check(name: str, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "raw") if name == "nifti_folder" else example(name, tmp_path / "raw")
    layout = recognised(folder)
    tree = plan_of(measure(layout.dataset()), layout, NET, BUDGET, output=str(tmp_path / "run"))
    text = as_yaml(tree)
    assert yaml.safe_load(text) == json.loads(json.dumps(values_of(tree)))
    file = tmp_path / "finetune.yaml"
    file.write_text(text)
    check_config(load_config([str(file)]))


def test_a_reason_stands_beside_its_value_or_above_it_where_the_line_is_full() -> None:
    tree = {"a": {"b": Chosen([1, 2], "short"), "c": Chosen("x: #", "long " * 30)}, "d": Chosen(None)}
    text = as_yaml(tree)
    assert "  b: [1, 2]  # short\n" in text
    assert max(map(len, text.splitlines())) <= 120
    assert yaml.safe_load(text) == {"a": {"b": [1, 2], "c": "x: #"}, "d": None}


def test_a_published_head_is_taken_for_the_same_classes_and_a_decoder_for_others_with_a_fresh_last_layer() -> None:
    names = ("background", "Anterior", "Posterior")
    same, other = (fitting_head(SHIPPED, MaskTarget(n)) for n in (names, (*names, "Tail")))
    assert same == Chosen("hippocampus", "published for the same classes")
    assert other == Chosen("hippocampus", "a published decoder of other classes; its last layer begins fresh")
    assert fitting_head(SHIPPED, ClassTarget(names)) is None
    assert fitting_head("resnet18", MaskTarget(names)) is None


def test_a_decoder_of_unlike_shape_is_not_begun_from(monkeypatch: pytest.MonkeyPatch) -> None:
    target = {"type": "mask", **MaskTarget(("background", "knee")).to_dict()}
    head = {"type": "unet", "head": {"num_classes": 2, "channels": [16, 32, 64, 99]}, "target": target}
    monkeypatch.setattr(starts, "published_folder", Path)
    monkeypatch.setattr(starts, "read_published_config", lambda folder: {"heads": {"knee": head}})
    assert [fitting_head("any", MaskTarget(("background", name))) for name in ("hip", "knee")] == [None, None]
    head["head"]["channels"][-1] = 128
    assert [fitting_head("any", MaskTarget(("background", name))).value for name in ("hip", "knee")] == ["knee", "knee"]  # type: ignore[union-attr]


def test_the_table_says_how_many_cases_each_class_has(tmp_path: Path) -> None:
    told = dict(rows(measure(recognised(class_folders(tmp_path, split=True)).dataset())))
    assert told["cases"] == "6: 4 train, 2 val; the rest is measured on 4 of train"
    assert told["size"] == "D x H x W, 8 x 12 x 14"
    assert told["spacing"] == "mm, 2 x 1 x 1"
    assert told["label"] == "2 classes: bright, dark; class samples: bright (2), dark (2)"


@pytest.mark.slow
def test_a_probe_says_what_a_net_costs() -> None:
    cost = measure_net("test_resnet", size=(8, 40, 40), spacing_mm=(5.0, 1.0, 1.0), num_classes=3, device="cpu")
    planned = resolve_plan("auto", input_size=(8, 40, 40), spacing_mm=(5.0, 1.0, 1.0))
    assert cost.plan == planned.to_dict()
    assert cost.stride == (planned.total_stride, 32, 32)
    assert cost.in_chans == 3
    assert cost.seconds_per_voxel > 0 <= cost.overhead_s
    assert cost.voxels_in(cost.step_s(1000)) == pytest.approx(1000)
    assert cost.bytes_per_voxel > 3 * 4  # at least the decoder's answer at full resolution


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "stride"),
    [("test_resnet", (16, 50, 40), 16), ("test_resnet", (16, 64, 64), 32), ("test_vit", (16, 20, 20), 16)],
)
def test_a_net_is_cut_where_its_deepest_map_would_be_one_voxel(name: str, size: Triple, stride: int) -> None:
    cost = measure_fitting_net(name, size=size, spacing_mm=None, num_classes=2)
    assert cost.stride[1:] == (stride, stride)
    assert dict(cost.timm_kwargs) == ({"output_stride": 16} if (name, stride) == ("test_resnet", 16) else {})
