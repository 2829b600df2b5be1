"""Every YAML in configs/ holds what it promises: a head, keys that exist, and a run that starts on toy shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inflate3d.cli.check import check_config
from inflate3d.cli.config import Config, load_config, packaged_configs
from inflate3d.contracts import AbstractTask
from inflate3d.contracts.task import fit_target
from inflate3d.datasets.toy import Toy
from inflate3d.discover import find
from inflate3d.errors import InputError
from nightly import NIGHTLY

CONFIGS = packaged_configs()
# What a config is laid over, for those that are no whole by themselves.
OVER = {"debug/overfit.yaml": ["quickstart.yaml"], "foundation_gpu.yaml": ["foundation_lite0.yaml"]}
OVER |= {name: ["quickstart.yaml"] for name in CONFIGS if name.startswith("trainer/")}
RUNS = [name for name in CONFIGS if not name.startswith("augment/")]
LIKE_ZERO3 = ("trainer/deepspeed_zero1.yaml", "trainer/deepspeed_zero2.yaml")
MADE = ["label_free.yaml", "foundation_lite0.yaml", "foundation_gpu.yaml", "foundation_video.yaml"]
TOYS = ("video_classification", "volume_segmentation", "volume_classification")


def toy_kind(task: type[AbstractTask]) -> str:
    """The kind of toy that has the medium and the target which a task takes."""
    wanted = None if task.target is None else task.target.__name__
    for kind in TOYS:
        try:
            fit_target(task.__name__, kind, Toy(kind=kind).card, media=task.media, target=wanted, given=None)
        except InputError:
            continue
        return kind
    raise AssertionError(f"no toy for {task.__name__}")


def on_toy_data(name: str, root: Path) -> Config:
    """Return a config whose datasets are toys that its tasks take, and whose net is tiny and wants no file."""
    config = load_config([*OVER.get(name, []), name])
    if name in MADE:  # its data are made on the fly: few of them will do
        for values in config.values["data"]["datasets"].values():
            few = {"num_train": 8, "num_val": 4}
            values["build"]["init_args"].update(few)
        return tiny(config, root, config.values["model"]["backbone"].get("stems", {}))
    kind_of = {}
    for task in config.values["model"]["tasks"].values():
        for dataset in task["init_args"]["datasets"]:
            kind_of[dataset] = toy_kind(find("tasks", task["class_path"]).load())
    for dataset, values in config.values["data"]["datasets"].items():
        toy = {"kind": kind_of[dataset], "num_train": 4, "num_val": 4, "size": 24}
        values["build"] = {"class_path": "Toy", "init_args": toy}
    inputs = {card.modality: card.input.channels for card in (Toy(kind=kind).card for kind in kind_of.values())}
    return tiny(config, root, {modality: len(channels) for modality, channels in inputs.items()})


def tiny(config: Config, root: Path, stems: dict[str, int]) -> Config:
    """Give a config a net that is tiny and wants no file."""
    backbone = config.values["model"]["backbone"]
    backbone.update(name="resnet10t", pretrained=False, timm_kwargs={})
    if "stems" in backbone:
        backbone["stems"] = stems
    config.values["model"].pop("start_heads", None)  # of weights that are published later
    config.values["data"]["root"] = str(root)
    return config


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_begins_with_its_goal(name: str) -> None:
    lines = CONFIGS[name].read_text(encoding="utf-8").splitlines()
    head = [line for line in lines[:12] if line.startswith("#")]
    assert len(head) >= 2, "a config is a document: its head says what it is for"
    assert "goal" in "\n".join(head).lower()


@pytest.mark.parametrize("name", RUNS)
def test_the_head_states_the_command(name: str) -> None:
    assert f"--config {name}" in CONFIGS[name].read_text(encoding="utf-8").split("\ntrainer:")[0]


@pytest.mark.parametrize("name", RUNS)
def test_every_key_class_and_reference_exists(name: str, tmp_path: Path) -> None:
    config = on_toy_data(name, tmp_path)
    check_config(config)
    assert config.get("trainer", "default_root_dir", default="").startswith("runs/")


@pytest.mark.parametrize("name", RUNS)
def test_every_build_names_arguments_that_its_dataset_takes(name: str) -> None:
    import inspect

    config = load_config([*OVER.get(name, []), name])
    for values in config.values["data"]["datasets"].values():
        if build := values.get("build"):
            known = inspect.signature(find("datasets", build["class_path"]).load().__init__).parameters
            assert set(build["init_args"]) <= set(known)


def test_no_two_configs_would_build_different_shards_in_one_place() -> None:
    built: dict[tuple[str, str], tuple[str, Any]] = {}
    for name in RUNS:
        config = load_config([*OVER.get(name, []), name])
        for dataset, values in config.values["data"]["datasets"].items():
            for member, own in values.get("members", {dataset: values}).items():
                if build := own.get("build"):
                    place = (config.values["data"]["root"], member)
                    first, other = built.setdefault(place, (name, build))
                    assert build == other, f"{place}: {first} and {name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=NIGHTLY * (n in LIKE_ZERO3)) for n in RUNS])
def test_it_takes_a_step_on_toy_shards(name: str, tmp_path: Path, platform_command: Callable[..., Any]) -> None:
    import yaml

    config = on_toy_data(name, tmp_path / "shards")
    for values in config.values["data"]["datasets"].values():
        values["batch_size"] = 2
        sample = values.get("sample", {})
        sample.update({k: [24, 24, 24] for k in ("patch_size", "size", "resize") if k in sample})
        sample.update(
            {k: v for k, v in {"num_frames": 4, "crop_size": 16, "short_side": 16}.items() if "num_frames" in sample}
        )
    config.values["trainer"].update(
        accelerator="cpu", devices=1, precision="32-true", max_steps=1, val_check_interval=None
    )
    config.values["data"]["num_workers"] = 0
    config.values.update(pictures=False, publish=None)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config.values))
    done = platform_command("fit", "--config", "mine.yaml")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / config.values["trainer"]["default_root_dir"] / "checkpoints" / "step-00000001").is_dir()


def test_the_config_of_the_readme_is_as_good_as_its_word(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    path = tmp_path / "readme.yaml"
    path.write_text(readme.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8")
    check_config(on_toy_data(str(path), tmp_path))
