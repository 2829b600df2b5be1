"""The three fine-tuning recipes: from the weight in the package to a publication that names its classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import inflate3d
import pytest
import torch
from inflate3d.cli.check import check_config
from inflate3d.cli.config import load_config
from inflate3d.discover import find
from inflate3d.errors import InputError

BUILD = "--data.datasets.mine.build.init_args"
# recipe -> dataset that its build names, options that make it small, classes of that dataset's example
RECIPES: dict[str, tuple[str, dict[str, str], list[str]]] = {
    "finetune_segmentation": (
        "NnunetRaw",
        {"model.backbone.stems": "{mri: 2}", "data.datasets.mine.sample.patch_size": "[16, 16, 16]"},
        ["background", "left", "right"],
    ),
    "finetune_classification": ("VolumeCSV", {"data.datasets.mine.sample.size": "[16, 16, 16]"}, ["bright", "dark"]),
    "finetune_video": (
        "VideoFolder",
        {"data.datasets.mine.sample": "{num_frames: 4, crop_size: 32}"},
        ["brighten", "darken"],
    ),
}


def on_the_example(recipe: str, raw: Path) -> list[str]:
    """Return the options that put a recipe on the example of the dataset that it names."""
    dataset, small, _ = RECIPES[recipe]
    told = find("datasets", dataset).load().write_example(raw)
    options = {f"{BUILD.removeprefix('--')}.{name}": str(value) for name, value in told.items()} | small
    return [word for option, value in options.items() for word in (f"--{option}", value)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_wants_nothing_but_the_raw_folder(recipe: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"finetune_\w+\.yaml:\d+: data\.datasets\.mine: .*no folder 'RAW'"):
        check_config(load_config([f"{recipe}.yaml"]))
    config = load_config([f"{recipe}.yaml"], on_the_example(recipe, tmp_path))
    check_config(config)
    assert config.get("model", "backbone", "name") in inflate3d.list_pretrained()


def test_the_stem_that_a_published_net_lacks_is_named_before_anything_is_built(tmp_path: Path) -> None:
    options = on_the_example("finetune_segmentation", tmp_path)
    at = options.index("--model.backbone.stems")
    del options[at : at + 2]
    with pytest.raises(InputError, match=r"2 channels \(t1, t2\); the net's stem takes 1.*stems '\{mri: 2\}'"):
        check_config(load_config(["finetune_segmentation.yaml"], options))


def test_a_published_head_that_does_not_exist_is_named_before_anything_is_built(tmp_path: Path) -> None:
    options = [*on_the_example("finetune_segmentation", tmp_path), "--model.start_heads.mine", "hippocampos"]
    with pytest.raises(InputError, match=r"start_heads\.mine: unknown head 'hippocampos'; close names: 'hippocampus'"):
        check_config(load_config(["finetune_segmentation.yaml"], options))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_leads_from_the_packaged_weight_to_published_heads_with_label_names(
    recipe: str, tmp_path: Path, platform_command: Callable[..., Any]
) -> None:
    def run(*arguments: str) -> str:
        done = platform_command(*arguments, timeout_s=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    short = ["--trainer.max_steps", "3", "--trainer.val_check_interval", "3", "--data.num_workers", "0"]
    small = ["--data.datasets.mine.batch_size", "2", "--model.warmup_steps", "1"]
    raw = tmp_path / "raw"
    told = run("fit", "--config", f"{recipe}.yaml", *on_the_example(recipe, raw), *short, *small)
    assert "step 3: validation" in told

    folder = f"runs/{recipe}"
    run("publish", folder, "--output", "local-dir:published", "--heads")
    address = f"local-dir:{tmp_path / 'published'}"
    is_segmenter = recipe == "finetune_segmentation"
    create = inflate3d.create_segmenter if is_segmenter else inflate3d.create_model
    net = create(address, pretrained=True).eval()
    assert net.label_names == RECIPES[recipe][2]

    inputs = {"finetune_segmentation": "Dataset999_Toy/imagesTs", "finetune_classification": "images"}
    where = ["--input", str(raw / inputs.get(recipe, "darken"))]
    labels = ["--labels", str(raw / "Dataset999_Toy/labelsTs")] if is_segmenter else []
    run("predict", folder, *where, "--output", "of_run", "--checkpoint", "last", *labels)
    run("predict", address, *where, "--output", "of_publication", *labels)
    written = sorted(path.name for path in (tmp_path / "of_run").iterdir())
    assert ("dice.csv" if is_segmenter else "predictions.csv") in written
    for name in written:
        assert (tmp_path / "of_run" / name).read_bytes() == (tmp_path / "of_publication" / name).read_bytes(), name

    channels = {"finetune_segmentation": 2, "finetune_classification": 1, "finetune_video": 3}[recipe]
    with torch.no_grad():
        assert net(torch.zeros(1, channels, 16, 32, 32)).shape[1] == len(net.label_names)
