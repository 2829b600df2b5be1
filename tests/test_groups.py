"""Groups: several datasets as one entry of the mixture, in configs that stay readable."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from inflate3d.cli.config import load_config
from inflate3d.data.stream.mixture import Group, Mixture, grouped
from inflate3d.errors import InputError

CONFIG = """
model:
  tasks:
    organs: {class_path: MedicalSegmentation, init_args: {datasets: [ct, brain]}}
data:
  datasets:
    ct:
      weight: 2
      temperature: 3
      batch_size: 8
      sample: {patch_size: [32, 64, 64], foreground: 0.5}
      members:
        kits: {}
        word: {weight: 3, sample: {foreground: 0.2}}
        lits: {batch_size: 4, sample: null}
    brain: {batch_size: 2}
"""


def read(tmp_path: Path, text: str = CONFIG, *overrides: str):
    (tmp_path / "own.yaml").write_text(text)
    return load_config([str(tmp_path / "own.yaml")], overrides)


def test_members_take_what_their_group_says_and_tasks_take_members(tmp_path: Path) -> None:
    config = read(tmp_path)
    datasets = config.get("data", "datasets")
    assert list(datasets) == ["kits", "word", "lits", "brain"]
    shared = {"patch_size": [32, 64, 64], "foreground": 0.5}
    assert datasets["kits"] == {"batch_size": 8, "sample": shared, "group": "ct"}
    assert datasets["word"] == {"batch_size": 8, "sample": {**shared, "foreground": 0.2}, "weight": 3, "group": "ct"}
    assert datasets["lits"] == {"batch_size": 4, "group": "ct"}
    assert config.get("data", "groups") == {"ct": {"weight": 2, "temperature": 3}}
    assert config.get("model", "tasks", "organs", "init_args", "datasets") == ["kits", "word", "lits", "brain"]
    assert config.where("data", "datasets", "kits", "sample", "foreground").startswith("own.yaml:11: ")
    assert config.where("data", "datasets", "word", "sample", "foreground").startswith("own.yaml:14: ")


def test_options_reach_members_and_a_null_takes_one_out(tmp_path: Path) -> None:
    config = read(
        tmp_path, CONFIG, "--data.datasets.ct.members.word.weight", "5", "--data.datasets.ct.members.lits", "null"
    )
    assert list(config.get("data", "datasets")) == ["kits", "word", "brain"]
    assert config.get("data", "datasets", "word", "weight") == 5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kits: {}", "brain: {}", "own.yaml:13: data.datasets.ct.members.brain: data.datasets has 'brain' already"),
        ("kits: {}", "kits: 3", "is 3; expected keys below it"),
        ("kits: {}", "kits: {members: {a: {}}}", "a member cannot be a group"),
    ],
)
def test_a_wrong_member_is_named_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        read(tmp_path, CONFIG.replace(old, new))
    assert message in str(refused.value)


def test_a_group_has_its_weight_and_its_members_share_it_exactly() -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 1.0, "alone": 1.0}
    group_of = {"a": "g", "b": "g", "c": "g", "alone": None}
    found = grouped(weights, dict.fromkeys(weights, 1.0), None, group_of=group_of, groups={"g": Group(weight=2.0)})
    assert found == {"a": Fraction(1, 2), "b": 1, "c": Fraction(1, 2), "alone": 1.0}
    assert Mixture(found).counts == [1, 2, 1, 2]
    thirds = grouped(
        {"a": 1.0, "b": 1.0, "c": 1.0, "alone": 1.0},
        dict.fromkeys(weights, 1.0),
        None,
        group_of=group_of,
        groups={"g": Group()},
    )
    assert Mixture(thirds).counts == [1, 1, 1, 3]


def test_temperatures_count_among_members_and_among_entries() -> None:
    weights, sizes = {"a": 1.0, "b": 1.0, "alone": 1.0}, {"a": 10.0, "b": 90.0, "alone": 25.0}
    group_of = {"a": "g", "b": "g", "alone": None}
    within = grouped(weights, sizes, None, group_of=group_of, groups={"g": Group(temperature=1)})
    assert {n: float(v) for n, v in within.items()} == pytest.approx({"a": 0.1, "b": 0.9, "alone": 1})
    among = grouped(weights, sizes, 2, group_of=group_of, groups={"g": Group()})  # 100 and 25: their roots are 2 to 1
    assert {n: float(v) for n, v in among.items()} == pytest.approx({"a": 1, "b": 1, "alone": 1})
    assert grouped(weights, sizes, None, group_of={}, groups={}) == weights


def test_wrong_groups_are_refused() -> None:
    one = {"a": 1.0}
    with pytest.raises(InputError, match=r"data\.datasets\.a\.group.*'gg'"):
        grouped(one, one, None, group_of={"a": "gg"}, groups={"g": Group()})
    with pytest.raises(InputError, match=r"data\.groups\.h: no dataset is a member"):
        grouped(one, one, None, group_of={"a": "g"}, groups={"g": Group(), "h": Group()})
    with pytest.raises(InputError, match=r"data\.groups\.g\.weight is 0"):
        grouped(one, one, None, group_of={"a": "g"}, groups={"g": Group(weight=0)})
    with pytest.raises(InputError, match=r"data\.groups\.g\.temperature is -1"):
        grouped(one, one, None, group_of={"a": "g"}, groups={"g": Group(temperature=-1)})
