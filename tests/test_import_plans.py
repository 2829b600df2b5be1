"""nnU-Net's plans as a config of this package: each value in its place, and a run that takes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from inflate3d.cli.check import check_config
from inflate3d.cli.config import load_config
from inflate3d.cli.main import main
from inflate3d.datasets.nnunet_raw import NnunetRaw

# As nnUNetv2_plan_and_preprocess writes it: sizes and spacings after the transposition, whose first axis has the
# largest spacing; what 3d_fullres inherits from nothing, and the cascade from 3d_fullres.
FULLRES = {
    "data_identifier": "nnUNetPlans_3d_fullres",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 3,
    "patch_size": [16, 64, 32],
    "median_image_size_in_voxels": [20.0, 70.0, 36.0],
    "spacing": [3.0, 0.5, 0.75],
    "normalization_schemes": ["ZScoreNormalization", "ZScoreNormalization"],
    "use_mask_for_norm": [True, True],
    "architecture": {"network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet"},
    "batch_dice": False,
}
PLANS: dict[str, Any] = {
    "dataset_name": "Dataset999_Toy",
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [2, 0, 1],
    "transpose_backward": [1, 2, 0],
    "configurations": {
        "2d": {**FULLRES, "patch_size": [64, 64], "spacing": [0.5, 0.75]},
        "3d_fullres": FULLRES,
        "3d_large": {"inherits_from": "3d_fullres", "batch_size": 5},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        "3d_round": {"inherits_from": "3d_about"},
        "3d_about": {"inherits_from": "3d_round"},
        "3d_bare": {"patch_size": [1, 1, 1]},
    },
    "foreground_intensity_properties_per_channel": {
        "0": {"percentile_00_5": -110.5, "percentile_99_5": 240.0, "mean": 60.0, "std": 50.0}
    },
}


@pytest.fixture
def plans(tmp_path: Path) -> Path:
    file = tmp_path / "nnUNetPlans.json"
    file.write_text(json.dumps(PLANS))
    return file


def imported(plans: Path, *options: str) -> dict[str, Any]:
    output = plans.with_name("mine.yaml")
    output.unlink(missing_ok=True)
    assert main(["import-plans", str(plans), "--output", str(output), *options]) == 0
    found: dict[str, Any] = yaml.safe_load(output.read_text())
    return found


def test_each_value_stands_where_it_belongs_in_the_axes_of_the_files(plans: Path, capsys: Any) -> None:
    config = imported(plans)
    mine = config["data"]["datasets"]["mine"]
    assert mine["batch_size"] == 3
    assert mine["sample"] == {"patch_size": [64, 32, 16], "foreground": 0.33}
    init = mine["build"]["init_args"]
    # transpose_forward [2, 0, 1]: the first planned axis is the third of the file.
    assert init == {"root": "RAW/Dataset999_Toy", "spacing_mm": [0.5, 0.75, 3.0], "modality": "mri"}
    assert mine["fold"] == {"number": 0, "of": 5}
    assert config["model"]["backbone"]["stems"] == {"mri": 2}
    told = capsys.readouterr().out
    for lost in ("network: PlainConvUNet", "use_mask_for_norm", "batch_dice false", "axes: "):
        assert lost in told
        assert lost in plans.with_name("mine.yaml").read_text()
    assert imported(plans, "--configuration", "3d_large")["data"]["datasets"]["mine"]["batch_size"] == 5


def test_ct_is_clipped_as_nnunet_clips_it(plans: Path, capsys: Any) -> None:
    content = json.loads(plans.read_text())
    content["configurations"]["3d_fullres"]["normalization_schemes"] = ["CTNormalization"]
    plans.write_text(json.dumps(content))
    config = imported(plans)
    init = config["data"]["datasets"]["mine"]["build"]["init_args"]
    assert (init["modality"], init["window"]) == ("ct", [-110.5, 240])
    assert "stems" not in config["model"]["backbone"]
    content["configurations"]["3d_fullres"]["normalization_schemes"] = ["CTNormalization", "ZScoreNormalization"]
    plans.write_text(json.dumps(content))
    assert "window" not in imported(plans)["data"]["datasets"]["mine"]["build"]["init_args"]
    assert "normalisation: CTNormalization beside or in place of a z-score" in capsys.readouterr().out


def test_a_run_takes_it_with_the_raw_folder_and_the_folds_beside_the_plans(plans: Path, tmp_path: Path) -> None:
    root = Path(NnunetRaw.write_example(tmp_path / "a folder: raw")["root"])
    plans.with_name("splits_final.json").write_text(json.dumps([{"train": [], "val": []}]))
    config = imported(plans, "--dataset-json", str(root / "dataset.json"))
    mine = config["data"]["datasets"]["mine"]
    assert mine["build"]["init_args"]["root"] == str(root)
    assert mine["fold"] == {"number": 0, "file": str(plans.with_name("splits_final.json"))}
    check_config(load_config([str(plans.with_name("mine.yaml"))], ["--data.root", str(tmp_path)]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--configuration", "2d"], "patch_size is [64, 64]; expected three numbers: a 3D configuration"),
        (["--configuration", "3d_fulres"], "unknown configuration '3d_fulres'; close names: '3d_fullres'"),
        (["--configuration", "3d_cascade_fullres"], "takes the masks of 3d_lowres as input, which has no counterpart"),
        (["--configuration", "3d_round"], "inherits from itself: 3d_round -> 3d_about -> 3d_round"),
        (["--configuration", "3d_bare"], "spacing is missing"),
        (["--dataset-json", "gone.json"], "--dataset-json: no file 'gone.json'"),
        (["--output", "nnUNetPlans.json"], "--output: nnUNetPlans.json is there already"),
        (["--output", "gone/mine.yaml"], "--output: no folder 'gone'; make it first"),
    ],
)
def test_what_cannot_be_imported_is_said(
    plans: Path, options: list[str], words: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(plans.parent)
    assert main(["import-plans", plans.name, "--output", "mine.yaml", *options]) == 2
    assert words in capsys.readouterr().err
    assert not Path("mine.yaml").exists()


def test_files_of_another_kind_and_another_dataset_are_said(plans: Path, tmp_path: Path, capsys: Any) -> None:
    table = tmp_path / "dataset.json"
    table.write_text(json.dumps({"channel_names": {"0": "CT"}}))
    output = str(tmp_path / "mine.yaml")
    assert main(["import-plans", str(plans), "--dataset-json", str(table), "--output", output]) == 2
    assert "names 1 channels, the plans normalise 2; are both of one dataset?" in capsys.readouterr().err
    assert main(["import-plans", str(table), "--output", output]) == 2
    assert "no nnUNetPlans.json of nnU-Net v2; expected dataset_name and configurations" in capsys.readouterr().err
