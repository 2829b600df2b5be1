"""Which parameters of a matrix stand for it in the fast tests and in .ci/run; the rest is `slow` or `nightly`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from inflate3d.models.architectures import smallest_of_each_family

NIGHTLY = [pytest.mark.nightly, pytest.mark.slow]
# A family for each way to build a net: plain, pre-activated, grouped, depthwise and standardised convolutions, dense,
# aggregated and parallel paths, gates; tokens of a fixed and of any number, windows, relative positions, attention over
# channels and beside convolutions; mixers and state spaces; frames that must be multiples of 32.
REPRESENTATIVE = {
    *("resnet", "resnetv2", "regnet", "mobilenetv3", "efficientnet", "nfnet", "byobnet", "convnext"),
    *("densenet", "dla", "hrnet", "levit", "efficientvit_mit", "mobilevit", "metaformer", "mambaout", "mlp_mixer"),
    *("vision_transformer", "vision_transformer_relpos", "swin_transformer", "maxxvit", "xcit"),
}


def families(*, without: Iterable[str] = ()) -> list[Any]:
    """The smallest net of each family as parameters, but for the names in `without`."""
    return [
        pytest.param(row, id=f"{row.family}-{row.name}", marks=[] if row.family in REPRESENTATIVE else NIGHTLY)
        for row in smallest_of_each_family()
        if row.name not in set(without)
    ]


def some(values: Iterable[tuple[Any, ...]], chosen: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Tuples of values as parameters; what is not in `chosen` is nightly."""
    chosen = list(chosen)
    return [pytest.param(*value, marks=[] if value in chosen else NIGHTLY) for value in values]


def slow_but(values: Iterable[Any], count: int) -> list[Any]:
    """Values (or tuples of them) as parameters, all but the first `count` marked slow."""
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*row, marks=[] if i < count else [pytest.mark.slow]) for i, row in enumerate(rows)]


def nightly_but(values: Iterable[Any], count: int) -> list[Any]:
    """Values (or tuples of them) as parameters, all but the first `count` nightly, and slow too."""
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    marks = NIGHTLY
    return [pytest.param(*row, marks=[] if i < count else marks) for i, row in enumerate(rows)]


def draws(count: int, fast: int, each: int = 10) -> list[Any]:
    """Seeds from 0 to count - 1 as ranges of `each`; those from `fast` on are nightly: the draws of a property."""
    marks = NIGHTLY
    starts = range(0, count, each)
    return [pytest.param(range(i, min(i + each, count)), marks=[] if i < fast else marks, id=str(i)) for i in starts]
