"""How cases are dealt into train and val."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.errors import InputError

KEYS = [f"case_{i:03d}" for i in range(220)]


def test_val_count_is_exact_and_follows_the_seed() -> None:
    first, second = SplitRule(val_count=40, seed=0).assign(KEYS), SplitRule(val_count=40, seed=1).assign(KEYS)
    assert Counter(first.values()) == {"train": 180, "val": 40}
    assert first != second
    assert first == SplitRule(val_count=40, seed=0).assign(KEYS[::-1])


def test_a_group_never_straddles() -> None:
    groups = [f"patient_{i // 3}" for i in range(len(KEYS))]
    splits = SplitRule(val_fraction=0.25).assign(KEYS, groups=groups)
    of_group = {}
    for key, group in zip(KEYS, groups, strict=True):
        assert of_group.setdefault(group, splits[key]) == splits[key]
    assert abs(Counter(splits.values())["val"] - 55) <= 2


def test_every_class_gives_its_share_where_groups_hold_one_class() -> None:
    labels = [0] * 200 + [1] * 20
    splits = SplitRule(val_fraction=0.2).assign(KEYS, labels=labels)
    per_class = Counter((splits[k], y) for k, y in zip(KEYS, labels, strict=True))
    assert per_class == {("train", 0): 160, ("val", 0): 40, ("train", 1): 16, ("val", 1): 4}


def test_every_class_stands_in_both_splits_where_scenes_are_shared() -> None:
    # Scenes and classes of ARID's six-class subset: scene -> class -> clips.
    scenes = {
        "1": "ttttttr",
        "2": "iiss",
        "3": "sss",
        "4": "ii",
        "7": "t",
        "8": "jjj",
        "10": "wwwiii",
        "11": "rrrj",
        "14": "ww",
    }
    groups = [g for g, text in scenes.items() for _ in text]
    labels = ["jrtisw".index(c) for text in scenes.values() for c in text]
    keys = KEYS[: len(labels)]
    for seed in range(20):
        splits = SplitRule(seed=seed).assign(keys, groups=groups, labels=labels)
        seen = {(splits[k], y) for k, y in zip(keys, labels, strict=True)}
        assert seen == {(s, y) for s in ("train", "val") for y in range(6)}, seed


def test_a_class_that_one_group_alone_holds_goes_to_train() -> None:
    splits = SplitRule(val_fraction=0.5).assign(KEYS[:5], groups=list("aabbc"), labels=[0, 1, 0, 1, 2])
    assert splits[KEYS[4]] == "train"


def test_a_split_file_says_it_case_by_case(tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": ["a", "b"], "val": ["c"], "test": ["d"]}))
    splits = SplitRule(split_file=str(file)).assign(list("abcd"))
    assert splits == {"a": "train", "b": "train", "c": "val", "d": "test"}
    with pytest.raises(InputError, match=r"'e'.*in no split"):
        SplitRule(split_file=str(file)).assign(list("abcde"))
    with pytest.raises(InputError, match="no case 'd'"):
        SplitRule(split_file=str(file)).assign(list("abc"))


def test_nothing_is_held_out_only_when_asked() -> None:
    assert set(SplitRule(val_fraction=0).assign(KEYS[:5]).values()) == {"train"}
    assert Counter(SplitRule(val_fraction=0.01).assign(KEYS[:5]).values())["val"] == 1
    with pytest.raises(InputError, match="holding out any group of the 5 cases"):
        SplitRule().assign(KEYS[:5], groups=["p"] * 5)
    with pytest.raises(InputError, match="leave at least one"):
        SplitRule(val_count=5).assign(KEYS[:5])


@pytest.mark.parametrize("arguments", [{"val_fraction": 1.0}, {"val_fraction": -0.1}, {"val_count": -1}])
def test_impossible_shares_are_refused(arguments: dict) -> None:
    with pytest.raises(InputError, match="must be"):
        SplitRule(**arguments)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3)), min_size=4, max_size=40), st.integers(0, 5))
def test_any_dealing_keeps_groups_whole_and_both_splits_filled(cases: list[tuple[int, int]], seed: int) -> None:
    keys = KEYS[: len(cases)]
    groups = [str(g) for g, _ in cases]
    if len(set(groups)) < 2:
        return
    rule = SplitRule(val_fraction=0.3, seed=seed)
    try:
        splits = rule.assign(keys, groups=groups, labels=[y for _, y in cases])
    except InputError:  # Each class lives in one group, so any split would take one from train.
        of_class = {y: {g for g, x in cases if x == y} for _, y in cases}
        assert min(map(len, of_class.values())) == 1
        return
    assert len({(g, splits[k]) for k, g in zip(keys, groups, strict=True)}) == len(set(groups))
    assert set(splits.values()) == {"train", "val"}
