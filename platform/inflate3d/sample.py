"""What flows: one decoded sample, and the batch that the tasks see.

Axis order everywhere: (B, C, D, H, W); D is time for video and slices (z) for volumes; triples are always (D, H, W).
No torch is imported here at run time, so that listing datasets stays instant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Triple = tuple[int, int, int]
Spacing = tuple[float, float, float]
IMAGE = "image"
"""The view that is there unless a config's `views` names others."""


@dataclass
class Sample:
    """One sample after decoding, before batching.

    views: float32 (C, D, H, W) by name, normalised as the dataset's card says. targets: by the card's names, each in
    its type's own dtype. spacing_mm: (z, y, x); for video the first entry is the seconds between two frames and the
    others are 1.
    """

    key: str
    views: dict[str, Tensor]
    targets: dict[str, Tensor] = field(default_factory=dict)
    spacing_mm: Spacing = (1.0, 1.0, 1.0)


@dataclass
class Batch:
    """One micro-batch: one dataset, the same on every rank.

    views: (B, C, D, H, W) by name; one sample has the same place in each. targets: (B, ...) by name. keys: B sample
    keys. spacing_mm: (B, 3). micro_batch: index of this global micro-batch in the run's stream (-1 in validation).
    """

    views: dict[str, Tensor]
    targets: dict[str, Tensor]
    keys: list[str]
    dataset: str
    spacing_mm: Tensor
    micro_batch: int = -1

    @property
    def image(self) -> Tensor:
        """The view "image", or the first where there is none of that name."""
        return self.views[IMAGE] if IMAGE in self.views else next(iter(self.views.values()))

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """Return the batch with its tensors moved, as torch.Tensor.to does."""
        return self._mapped(lambda tensor: tensor.to(*args, **kwargs))

    def pin_memory(self) -> Batch:
        """Return the batch with its tensors in page-locked memory (what DataLoader calls)."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        views = {name: change(tensor) for name, tensor in self.views.items()}
        targets = {name: change(tensor) for name, tensor in self.targets.items()}
        return replace(self, views=views, targets=targets, spacing_mm=change(self.spacing_mm))
