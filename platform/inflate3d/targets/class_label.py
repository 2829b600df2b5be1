"""One class a sample: an index into the names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

from inflate3d.contracts.prediction import Probabilities
from inflate3d.contracts.target import AbstractTarget
from inflate3d.errors import InputError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ClassTarget(AbstractTarget):
    """names: the classes in index order. In a batch (B,) int64; a class that is not known is -1."""

    names: tuple[str, ...] = ()  # type: ignore[assignment]
    missing: ClassVar[int] = -1
    exclusive: ClassVar[bool] = True

    def encode(self, value: Any) -> int:
        """Take an index or a name."""
        if isinstance(value, str):
            if value not in self.names:
                raise unknown_name("class", value, self.names)
            return self.names.index(value)
        # A whole number, perhaps NumPy's, or written as 2.0.
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or value not in range(len(self.names)):
            raise InputError(f"is {str(value)[:80]}; allowed: 0 to {len(self.names) - 1}")
        return int(value)

    def check(self, stored: Any) -> None:
        """Refuse what is no index of the names."""
        if stored is not None and (type(stored) is not int or not 0 <= stored < len(self.names)):
            raise InputError(f"is {str(stored)[:80]!r}; allowed: 0 to {len(self.names) - 1}")

    def tensor(self, stored: Any) -> Tensor:
        """() int64."""
        import torch

        return torch.tensor(self.missing if stored is None else stored, dtype=torch.int64)

    def summarise(self, stored: Sequence[Any]) -> dict[str, Any]:
        """Samples of each class."""
        counts = Counter(stored)
        return {"class_samples": {name: counts[i] for i, name in enumerate(self.names)}}

    def describe(self) -> str:
        """The names."""
        return f"{len(self.names)} classes: {', '.join(self.names)}"

    def show(self, value: Tensor) -> str:
        """The class's name."""
        return self.names[int(value)] if int(value) >= 0 else "unknown"

    def answer(self, logits: Tensor) -> Probabilities:
        """Their softmax, (B, K)."""
        return Probabilities(logits.float().softmax(dim=1))

    def check_batch(self, value: Tensor) -> None:
        """Refuse what is no index of the names; -1 is not known."""
        low, high = int(value.min()), int(value.max())
        if low < self.missing or high >= len(self.names):
            raise InputError(
                f"values from {low} to {high}; {len(self.names)} classes are named: {', '.join(self.names)}"
            )

    def tally(self, value: Tensor) -> Tensor:
        """How often each class occurs."""
        import torch

        return torch.bincount(value[value >= 0], minlength=len(self.names)).double()

    def constant_logits(self, tally: Tensor, like: Tensor) -> Tensor:
        """The logarithms of the classes' frequencies, (B, K)."""
        return ((tally + 1) / (tally + 1).sum()).log().float().expand(len(like), -1)
