"""Every type of target: what the contract promises of it; a new file in targets/ is tested without a new test."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from inflate3d.contracts import AbstractTarget, DatasetCard
from inflate3d.discover import plug_ins
from inflate3d.errors import InputError

NAMES = sorted(n for n, plug_in in plug_ins("targets").items() if plug_in.module.startswith("inflate3d.targets"))
CLASSES = ("background", "a", "b")


def made(name: str) -> AbstractTarget:
    """A target of the type: with three classes where it has classes, else with its defaults."""
    cls = plug_ins("targets")[name].load()
    target: AbstractTarget = cls(names=CLASSES) if "names" in (f.name for f in fields(cls)) else cls()
    return target


def scalars() -> st.SearchStrategy[Any]:
    numbers = st.integers(-2, 4) | st.sampled_from([10**400, -(2**70), 0.0, 1.0, 2.0, 41.7, math.nan, math.inf, -1e300])
    wrapped = st.sampled_from([np.int64(1), np.float32(2), np.float64(math.nan), np.bool_(True), True, False])
    return numbers | wrapped | st.sampled_from([*CLASSES, "", "c", "1", b"a", None]) | st.floats()


def raw_values() -> st.SearchStrategy[Any]:
    """What a dataset may give, right or wrong."""
    lists = st.lists(st.sampled_from([0, 1, None, math.nan]), min_size=3, max_size=3) | st.lists(scalars(), max_size=4)
    tables = st.dictionaries(st.sampled_from([*CLASSES, "c"]) | st.integers(0, 2), scalars(), max_size=3)
    boxes = arrays.array_shapes(min_dims=0, max_dims=4, max_side=3)
    volumes = arrays.arrays(np.uint8, boxes, elements=st.integers(0, 4)) | arrays.arrays(np.float32, boxes)
    return scalars().filter(lambda v: v is not None) | lists | tables | volumes | st.sets(st.sampled_from(CLASSES))


def json_values() -> st.SearchStrategy[Any]:
    """What a damaged or hostile JSON member may hold."""
    leaves = st.none() | st.booleans() | st.integers(-2, 4) | st.just(10**400) | st.floats(allow_nan=False) | st.text()
    entries = st.lists(st.sampled_from([0, 1, None]), min_size=3, max_size=3)
    return entries | st.recursive(
        leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6
    )


def encoded(target: AbstractTarget, value: Any) -> tuple[bool, Any]:
    """Whether the target takes a value, and what a shard holds of it. Anything but InputError is a fault."""
    try:
        return True, target.encode(value)
    except InputError:
        return False, None


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(-9.0), b.nan_to_num(-9.0))


def test_the_four_types_are_found() -> None:
    assert {"class_label", "multi_label", "mask", "value"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(value=raw_values())
def test_a_value_is_refused_or_stored_such_that_it_passes_every_check_again(name: str, value: Any) -> None:
    target = made(name)
    taken, stored = encoded(target, value)
    if not taken:
        return
    if target.per_voxel:
        assert (stored.dtype, stored.ndim) == (np.uint8, 3)
        np.testing.assert_array_equal(target.encode(stored), stored)
    else:
        stored = json.loads(json.dumps(stored, allow_nan=False))
        assert stored is None or target.encode(stored) == stored
    target.check(stored)
    tensor = target.tensor(stored)
    assert isinstance(target.show(tensor), str)
    if not target.per_voxel:
        missing = target.tensor(None)
        assert (tensor.shape, tensor.dtype) == (missing.shape, missing.dtype)


@pytest.mark.parametrize("name", NAMES)
def test_every_type_takes_a_value_and_refuses_one(name: str) -> None:
    candidates: list[Any] = [1, "a", 41.7, [0, 1, None], {"a": 1}, np.full((2, 3, 4), 2, np.uint8), object(), -7, "c"]
    answers = {encoded(made(name), value)[0] for value in candidates}
    assert answers == {True, False}


@pytest.mark.parametrize("name", [n for n in NAMES if not made(n).per_voxel])
@settings(max_examples=60, deadline=None)
@given(stored=json_values())
def test_what_a_check_passes_can_be_a_batch(name: str, stored: Any) -> None:
    target = made(name)
    try:
        target.check(stored)
    except InputError:
        return
    missing = target.tensor(None)
    batch = torch.stack([target.tensor(stored), missing])
    assert batch.dtype == missing.dtype


@pytest.mark.parametrize("name", [n for n in NAMES if not made(n).per_voxel])
def test_a_missing_value_passes_the_checks_and_counts_for_nothing(name: str) -> None:
    target = made(name)
    target.check(None)
    missing = target.tensor(None)
    values = [target.encode(v) for v in (1, 0.0, [0, 1, None], ["a"]) if encoded(target, v)[0]]
    known = torch.stack([target.tensor(v) for v in values])
    assert same(target.tally(torch.cat([known, missing[None]])), target.tally(known))
    assert same(target.tally(known[:1]) + target.tally(known[1:]), target.tally(known))
    logits = target.constant_logits(target.tally(known), known)
    assert len(logits) == len(known)
    assert logits.isfinite().all()
    json.dumps(target.summarise([*values, None]), allow_nan=False)
    json.dumps(target.summarise([None]), allow_nan=False)
    assert isinstance(target.show(missing), str)


@pytest.mark.parametrize("name", [n for n in NAMES if made(n).per_voxel])
def test_an_array_is_measured_and_tallied(name: str) -> None:
    target = made(name)
    array = np.zeros((2, 3, 4), np.uint8)
    array[0, 0, 0] = 2
    json.dumps(target.summarise([json.loads(json.dumps(target.facts(array))), None]), allow_nan=False)
    value = torch.stack([target.tensor(array)] * 2)
    logits = target.constant_logits(target.tally(value), value)
    assert logits.shape == ((2, len(target.names), 2, 3, 4) if target.names else (2, 2, 3, 4))
    for wrong in (array[0], array.astype(np.int64), None):
        with pytest.raises(InputError, match=r"expected uint8 \(D, H, W\)"):
            target.check(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_holds_the_type_by_its_files_name(name: str) -> None:
    target = made(name)
    facts: dict[str, Any] = dict.fromkeys(("title", "modality", "url", "licence", "citation"), "")
    card = DatasetCard(
        "x", "volume", commercial_use=None, weights_may_be_published=False, targets={"t": target}, **facts
    )
    stated = json.loads(json.dumps(card.to_dict(), allow_nan=False))
    assert stated["targets"]["t"]["type"] == target.type_name() == name
    assert DatasetCard.from_dict(stated) == card
    assert DatasetCard.from_dict(stated).to_dict() == card.to_dict()
    assert target.describe()
    assert plug_ins("targets")[name].summary


@pytest.mark.parametrize("name", NAMES)
def test_a_description_that_is_wrong_names_its_place(name: str) -> None:
    stated = made(name).to_dict()
    with pytest.raises(InputError, match=r"card: targets\.t: unknown keys \['nmes'\]"):
        AbstractTarget.from_dict({**stated, "nmes": []}, where="card: targets.t")
    with pytest.raises(InputError, match=r"card: targets\.t: unknown target type 'colour'"):
        AbstractTarget.from_dict({**stated, "type": "colour"}, where="card: targets.t")
