"""What flows: one decoded sample, and the batch that the tasks see.

Axis order everywhere: (B, C, D, H, W); D is time for video and slices (z) for volumes; triples are always (D, H, W).
No torch is imported here at run time, so that listing datasets stays instant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Triple = tuple[int, int, int]
Spacing = tuple[float, float, float]


@dataclass
class Sample:
    """One sample after decoding, before batching.

    image: float32 (C, D, H, W), normalised as the dataset's card says.
    target: class index (int) for classification, int64 label map (D, H, W) for segmentation.
    spacing_mm: (z, y, x); for video the first entry is the seconds between two frames and the others are 1.
    """

    key: str
    image: torch.Tensor
    target: Any
    spacing_mm: Spacing = (1.0, 1.0, 1.0)


@dataclass
class Batch:
    """One micro-batch: one dataset, one task, the same on every rank.

    image: (B, C, D, H, W). target: (B,) class indices or (B, D, H, W) label maps, int64. keys: B sample keys.
    spacing_mm: (B, 3). micro_batch: index of this global micro-batch in the run's stream (-1 in validation).
    """

    image: torch.Tensor
    target: torch.Tensor
    keys: list[str]
    dataset: str
    task: str
    spacing_mm: torch.Tensor
    micro_batch: int = -1

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """Return the batch with its tensors moved, as torch.Tensor.to does."""
        moved = {f: getattr(self, f).to(*args, **kwargs) for f in ("image", "target", "spacing_mm")}
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """Return the batch with its tensors in page-locked memory (what DataLoader calls)."""
        pinned = {f: getattr(self, f).pin_memory() for f in ("image", "target", "spacing_mm")}
        return replace(self, **pinned)
