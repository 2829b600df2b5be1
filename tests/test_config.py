"""Configs: merged by key, overridden, and wrong ones refused with file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest
from inflate3d.cli.config import find_config, load_config, packaged_configs
from inflate3d.document import read_document
from inflate3d.errors import InputError

BASE = """\
trainer: {max_steps: 5}
model:
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1e-3, betas: [0.9, 0.99]}}
data:
  datasets:
    k400: {weight: 2, batch_size: 8}
    liver: {weight: 1, batch_size: 4, sample: {patch_size: [8, 8, 8]}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_second_config_that_changes_one_weight_keeps_the_other_datasets(folder: Path) -> None:
    (folder / "more.yaml").write_text("data: {datasets: {k400: {weight: 3}}}\n")
    config = load_config(["base.yaml", "more.yaml"])
    assert config.values["data"]["datasets"] == {
        "k400": {"weight": 3, "batch_size": 8},
        "liver": {"weight": 1, "batch_size": 4, "sample": {"patch_size": [8, 8, 8]}},
    }
    assert config.where("data", "datasets", "k400", "weight") == "more.yaml:1: data.datasets.k400.weight"
    assert config.where("data", "datasets", "k400", "batch_size") == "base.yaml:6: data.datasets.k400.batch_size"


def test_null_deletes_an_entry_and_lists_are_replaced_as_a_whole(folder: Path) -> None:
    (folder / "more.yaml").write_text(
        "data: {datasets: {liver: null}}\nmodel: {optimizer: {init_args: {betas: [0.5, 0.5], lr: null}}}\n"
    )
    config = load_config(["base.yaml", "more.yaml"])
    assert list(config.values["data"]["datasets"]) == ["k400"]
    assert config.get("model", "optimizer", "init_args") == {"betas": [0.5, 0.5]}


def test_another_class_drops_the_arguments_of_the_class_before(folder: Path) -> None:
    (folder / "more.yaml").write_text("model: {optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}}\n")
    config = load_config(["base.yaml", "more.yaml"])
    assert config.get("model", "optimizer") == {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}


def test_an_option_for_the_arguments_of_another_class_holds_before_and_behind_it(folder: Path) -> None:
    kind, rate = ["--model.optimizer.class_path", "torch.optim.SGD"], ["--model.optimizer.init_args.lr", "0.1"]
    for options in (kind + rate, rate + kind):
        config = load_config(["base.yaml"], options)
        assert config.get("model", "optimizer") == {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}


def test_overrides_come_last_and_reach_into_a_class_by_its_arguments_name(folder: Path) -> None:
    options = ["--trainer.max_steps=10", "--model.optimizer.lr", "3e-4", "--data.datasets.liver", "null"]
    config = load_config(["base.yaml"], [*options, "--trainer.logger", "{class_path: CSVLogger}"])
    assert config.get("trainer") == {"max_steps": 10, "logger": {"class_path": "CSVLogger"}}
    assert config.get("model", "optimizer", "init_args", "lr") == 3e-4
    assert "liver" not in config.get("data", "datasets")
    assert config.where("trainer", "max_steps") == "--trainer.max_steps"


def test_exponents_without_a_dot_are_numbers(folder: Path) -> None:
    assert load_config(["base.yaml"]).get("model", "optimizer", "init_args", "lr") == 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: {max_steps: 1}\ntrainer: {max_steps: 2}\n", "bad.yaml:2: trainer appears twice, first on line 1"),
        ("trainer:\n  devices: 1\n  max_steps: 3\n  devices: 2\n", "bad.yaml:4: trainer.devices appears twice"),
        ("trainer: {max_steps: [1\n", "bad.yaml:2: not valid YAML"),
        ("- a\n- b\n", "bad.yaml:1: expected keys (trainer:, model:, data:), got a seq"),
        ("data: {datasets: {1: {weight: 2}}}\n", "bad.yaml:1: the key 1 is not text"),
        ("a: !!python/object/apply:os.system [echo]\n", "bad.yaml:1: not valid YAML"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(folder: Path, text: str, message: str) -> None:
    (folder / "bad.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        load_config(["bad.yaml"])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--data.datasets.k40.weight", "3"],
            "--data.datasets.k40.weight: unknown entry of data.datasets 'k40'; close names: 'k400'",
        ),
        (["--trainer.max_steps"], "--trainer.max_steps has no value"),
        (["stray"], "unknown argument 'stray'"),
        (["--trainer.max_steps.more", "1"], "trainer.max_steps is 5, which has no keys below it"),
    ],
)
def test_a_bad_override_is_refused(folder: Path, options: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        load_config(["base.yaml"], options)
    assert message in str(error.value)


def test_a_bare_name_is_found_in_the_working_folder_first_then_among_the_packaged_ones(folder: Path) -> None:
    assert find_config("quickstart.yaml") == packaged_configs()["quickstart.yaml"]
    (folder / "quickstart.yaml").write_text("trainer: {max_steps: 1}\n")
    assert find_config("quickstart.yaml") == Path("quickstart.yaml")
    with pytest.raises(InputError, match=r"unknown config 'quickstrat.yaml'; close names: 'quickstart.yaml'"):
        find_config("quickstrat.yaml")


def test_lines_are_known_for_every_key(folder: Path) -> None:
    _, lines = read_document(folder / "base.yaml")
    assert lines["data", "datasets", "liver", "sample", "patch_size"] == 7


def test_a_file_is_merged_over_the_one_it_extends(tmp_path):
    (tmp_path / "base.yaml").write_text("trainer: {max_steps: 3, devices: 1}\ndata: {datasets: {a: {weight: 1}}}\n")
    (tmp_path / "mine.yaml").write_text(
        "extends: base.yaml\ntrainer: {max_steps: 5}\ndata: {datasets: {b: {weight: 2}}}\n"
    )
    config = load_config([str(tmp_path / "mine.yaml")])
    assert config.values == {
        "trainer": {"max_steps": 5, "devices": 1},
        "data": {"datasets": {"a": {"weight": 1}, "b": {"weight": 2}}},
    }
    assert [path.name for path in config.files] == ["base.yaml", "mine.yaml"]


def test_files_that_extend_each_other_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(InputError, match=r"leads back to itself: a\.yaml -> b\.yaml -> a\.yaml"):
        load_config([str(tmp_path / "a.yaml")])
