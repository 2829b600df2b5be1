"""Means of the training losses since the last logged row, by name; exact over a resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class TrainMeans:
    """Adds up scalars without waiting for the device; `take` averages them, over ranks too, and starts anew.

    Micro-batches of a mixture come in turns, so each key has a count of its own; `train/loss` averages over all.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Count the scalars of one micro-batch; keys that end in /loss count for train/loss as well."""
        for key, value in values.items():
            self._add(key, value.detach())
            if key.endswith("/loss"):
                self._add("train/loss", value.detach())

    def take(self, *, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the means and forget them. `reduce` sums a tensor over ranks, which all hold the same keys."""
        keys = sorted(self._sums)
        if not keys:
            return {}
        sums = torch.stack([self._sums[key].double() for key in keys])
        counts = torch.tensor([self._counts[key] for key in keys], dtype=torch.float64, device=sums.device)
        means = torch.stack([sums, counts])
        total_sums, total_counts = reduce(means)
        self._sums, self._counts = {}, {}
        return dict(zip(keys, (total_sums / total_counts).tolist(), strict=True))

    def state_dict(
        self, *, reduce: Callable[[Tensor], Tensor], rank: int, world_size: int
    ) -> list[dict[str, tuple[float, int]]]:
        """Return sums and counts of every rank as plain numbers (exact: a float32 sum fits into a Python float).

        All ranks call it together; `reduce` as for `take`.
        """
        keys = sorted(self._sums)
        if not keys:
            return []
        sums = torch.stack([self._sums[key].double() for key in keys])
        counts = torch.tensor([self._counts[key] for key in keys], dtype=torch.float64, device=sums.device)
        ranks = torch.zeros(world_size, 2, len(keys), dtype=torch.float64, device=sums.device)
        ranks[rank] = torch.stack([sums, counts])
        return [
            {key: (total, int(count)) for key, total, count in zip(keys, *numbers, strict=True)}
            for numbers in reduce(ranks).tolist()
        ]

    def load_state_dict(self, state: Any, *, rank: int, world_size: int) -> None:
        """Take up what this rank had; among other ranks, the first takes what all had, so that totals stay.

        A single mapping, as it was written once, is that of one rank.
        """
        parts: list[dict[str, tuple[float, int]]] = [state] if isinstance(state, dict) else state
        keys = list(parts[0]) if parts else []
        if len(parts) == world_size:
            own = {key: parts[rank][key] for key in keys}
        else:
            totals = {key: (sum(p[key][0] for p in parts), sum(p[key][1] for p in parts)) for key in keys}
            own = totals if rank == 0 else dict.fromkeys(keys, (0.0, 0))
        self._sums = {key: torch.tensor(value) for key, (value, _) in own.items()}
        self._counts = {key: count for key, (_, count) in own.items()}

    def _add(self, key: str, value: Tensor) -> None:
        value = value.float()
        self._sums[key] = self._sums[key].to(value.device) + value if key in self._sums else value.clone()
        self._counts[key] = self._counts.get(key, 0) + 1
