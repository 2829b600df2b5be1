"""Several labels a sample, each there, not there, or not known."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from inflate3d.contracts.prediction import Probabilities
from inflate3d.contracts.target import AbstractTarget
from inflate3d.errors import InputError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MultiLabelTarget(AbstractTarget):
    """names: the labels in order. In a batch (B, K) float32 of 0 and 1; a label that is not known is NaN."""

    names: tuple[str, ...] = ()  # type: ignore[assignment]

    def encode(self, value: Any) -> list[int | None]:
        """Take the names that hold, a mapping {name: 0 or 1 or None}, or one entry for each name in order."""
        value = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(value, dict):
            self._check_names(value)
            value = [value.get(name) for name in self.names]
        elif isinstance(value, Collection) and all(isinstance(v, str) for v in value) and not isinstance(value, str):
            self._check_names(value)
            value = [name in value for name in self.names]
        if not isinstance(value, Collection) or len(value) != len(self.names) or not all(map(_is_entry, value)):
            raise InputError(f"is {str(value)[:80]}; expected {len(self.names)} entries, each 0, 1 or None")
        return [None if v is None or v != v else int(v) for v in value]

    def check(self, stored: Any) -> None:
        """Refuse what is no list of 0, 1 and null."""
        if stored is None:
            return
        entries = stored if isinstance(stored, list) else [2]
        if len(entries) != len(self.names) or not all(v is None or (type(v) is int and v in (0, 1)) for v in entries):
            raise InputError(f"is {str(stored)[:80]!r}; expected {len(self.names)} entries, each 0, 1 or null")

    def tensor(self, stored: Any) -> Tensor:
        """(K,) float32."""
        import torch

        entries = [None] * len(self.names) if stored is None else stored
        return torch.tensor([float("nan") if v is None else float(v) for v in entries], dtype=torch.float32)

    def summarise(self, stored: Sequence[Any]) -> dict[str, Any]:
        """Samples that show each label, and samples of which it is known."""
        rows = [row for row in stored if row is not None]
        columns = {name: [row[i] for row in rows if row[i] is not None] for i, name in enumerate(self.names)}
        return {
            "label_samples": {name: sum(column) for name, column in columns.items()},
            "label_known": {name: len(column) for name, column in columns.items()},
        }

    def describe(self) -> str:
        """The names."""
        return f"{len(self.names)} labels: {', '.join(self.names)}"

    def show(self, value: Tensor) -> str:
        """The labels that hold."""
        return ", ".join(n for n, v in zip(self.names, value.tolist(), strict=True) if v == 1) or "none"

    def answer(self, logits: Tensor) -> Probabilities:
        """The sigmoid of each, (B, K)."""
        return Probabilities(logits.float().sigmoid())

    def check_batch(self, value: Tensor) -> None:
        """Refuse what is not 0, 1 or NaN."""
        if not bool(((value == 0) | (value == 1) | value.isnan()).all()):
            raise InputError(f"values from {float(value.nan_to_num().min())} to {float(value.nan_to_num().max())}")

    def tally(self, value: Tensor) -> Tensor:
        """How often each label is known, and how often it holds."""
        import torch

        return torch.cat([(~value.isnan()).sum(0), value.nan_to_num(0).sum(0)]).double()

    def constant_logits(self, tally: Tensor, like: Tensor) -> Tensor:
        """The log odds of each label, (B, K)."""
        known, held = tally.chunk(2)
        return ((held + 1) / (known + 2)).logit().float().expand(len(like), -1)

    def _check_names(self, given: Collection[str]) -> None:
        for name in given:
            if name not in self.names:
                raise unknown_name("label", str(name), self.names)


def _is_entry(value: Any) -> bool:
    """Whether a label is said to hold, not to hold, or, by None or NaN, not to be known."""
    return value is None or (isinstance(value, Real) and (value != value or value in (0, 1)))
