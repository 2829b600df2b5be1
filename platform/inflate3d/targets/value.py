"""One number a sample, with its unit: an age, a volume, a score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from inflate3d.contracts.prediction import Values
from inflate3d.contracts.target import AbstractTarget
from inflate3d.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST = 3.4028234e38  # of float32, which a batch holds


@dataclass(frozen=True)
class ValueTarget(AbstractTarget):
    """unit: as people say it ("years"). low, high: what is allowed. In a batch (B,) float32; not known is NaN."""

    unit: str = ""
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        # JSON holds no infinity: null stands for no bound.
        object.__setattr__(self, "low", -math.inf if self.low is None else float(self.low))
        object.__setattr__(self, "high", math.inf if self.high is None else float(self.high))
        if not self.low < self.high:
            raise InputError(f"low is {self.low}, high {self.high}; low must be below high")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; null: no bound."""
        bounds = {name: v if math.isfinite(v) else None for name, v in (("low", self.low), ("high", self.high))}
        return {**super().to_dict(), **bounds}

    def encode(self, value: Any) -> float | None:
        """Take a finite number between low and high; NaN is a value that is not known."""
        if not isinstance(value, Real) or isinstance(value, bool):
            raise InputError(f"is {str(value)[:80]!r}; expected a number")
        if value != value:
            return None
        self._check(value)
        return float(value)

    def check(self, stored: Any) -> None:
        """Refuse what is no finite number between low and high."""
        if stored is None:
            return
        if isinstance(stored, bool) or not isinstance(stored, int | float):
            raise InputError(f"is {str(stored)[:80]!r}; expected a number, or null where it is not known")
        self._check(stored)

    def tensor(self, stored: Any) -> Tensor:
        """() float32."""
        import torch

        return torch.tensor(math.nan if stored is None else float(stored), dtype=torch.float32)

    def summarise(self, stored: Sequence[Any]) -> dict[str, Any]:
        """How many are known, their mean, spread and range."""
        import numpy as np

        known = np.array([v for v in stored if v is not None], float)
        if not len(known):
            return {"known": 0}
        numbers = {"mean": known.mean(), "std": known.std(), "min": known.min(), "max": known.max()}
        return {"known": len(known), **{name: float(f"{v:.6g}") for name, v in numbers.items()}}

    def describe(self) -> str:
        """The unit and the bounds."""
        low = f" from {self.low:g}" if math.isfinite(self.low) else ""
        high = f" to {self.high:g}" if math.isfinite(self.high) else ""
        return f"a number in {self.unit or 'no unit'}{low}{high}"

    def show(self, value: Tensor) -> str:
        """The number and its unit."""
        return "unknown" if bool(value.isnan()) else f"{float(value):.4g} {self.unit}".strip()

    def answer(self, logits: Tensor) -> Values:
        """The numbers as they are, (B,)."""
        return Values(logits.float())

    def check_batch(self, value: Tensor) -> None:
        """Refuse what is not allowed; NaN is not known."""
        import torch

        low, high = torch.tensor([self.low, self.high], dtype=value.dtype, device=value.device)
        wrong = value[(value < low) | (value > high) | value.isinf()]
        if len(wrong):
            raise InputError(f"holds {float(wrong[0])}; allowed: {self.low:g} to {self.high:g}")

    def tally(self, value: Tensor) -> Tensor:
        """How many are known, and their sum."""
        import torch

        return torch.stack([(~value.isnan()).sum(), value.double().nansum()]).double()

    def constant_logits(self, tally: Tensor, like: Tensor) -> Tensor:
        """The mean, (B,)."""
        return (tally[1] / tally[0].clamp_min(1)).float().expand(len(like))

    def _check(self, number: Any) -> None:
        if not abs(number) <= _LARGEST or not self.low <= number <= self.high:
            raise InputError(f"is {str(number)[:80]}; allowed: {self.low:g} to {self.high:g}")
