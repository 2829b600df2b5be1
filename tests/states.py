"""States of runs, compared to the bit: tensors, numbers, and what holds them."""

from __future__ import annotations

from typing import Any

import torch


def assert_equal_state(one: Any, other: Any) -> None:
    """Two nested states are equal, each tensor in every bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal_state(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal_state(a, b)
    else:
        assert one == other
