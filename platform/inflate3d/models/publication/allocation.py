"""A bound on what a net may allocate while it is built from a description that came from outside."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from inflate3d.errors import InputError

_SIZED = {
    f"aten::{name}"
    for name in ("empty", "zeros", "ones", "full", "rand", "randn", "empty_strided", "new_empty", "new_zeros")
} | {f"aten::{name}" for name in ("new_ones", "new_full", "new_empty_strided", "arange", "linspace", "repeat", "eye")}
_MOST_CALLS = 400_000


class AllocationLimit(TorchDispatchMode):
    """Refuse to make tensors of more than `most` numbers in all, before their memory is asked for. InputError."""

    def __init__(self, most: int, *, where: str) -> None:
        super().__init__()
        self.most, self.where = most, where
        self.count = self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count what a factory is about to make, then let it."""
        name = func._schema.name
        if name in _SIZED:
            self.calls += 1
            self.count += _count_of(name, args)
            if self.count > self.most or self.calls > _MOST_CALLS:
                raise InputError(
                    f"{self.where}: its net would hold more than {self.most} numbers, its weights are far fewer; "
                    "refused before the memory was taken"
                )
        return func(*args, **(kwargs or {}))


def build_within(build: Callable[[], torch.nn.Module], most: int, *, where: str) -> torch.nn.Module:
    """Return what `build` returns. InputError once it asks for more than `most` numbers."""
    with AllocationLimit(most, where=where):
        return build()


def _count_of(name: str, args: Sequence[Any]) -> int:
    if name in ("aten::arange", "aten::linspace", "aten::eye"):
        numbers = [float(a) for a in args if isinstance(a, int | float)]
        return int(max(map(abs, numbers), default=0)) ** (2 if name == "aten::eye" else 1)
    if name == "aten::repeat":
        return args[0].numel() * math.prod(args[1])
    for argument in args:
        if isinstance(argument, list | tuple | torch.Size):
            return math.prod(int(n) for n in argument)
    return 0
