"""What tasks answer, by type: probabilities, masks, values, or features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from inflate3d.sample import Triple

if TYPE_CHECKING:
    import torch


@dataclass
class Prediction:
    """An answer for a batch: one float32 tensor on the batch's device. Derive, or use one of the types below.

    per_voxel: it has the image's grid, so that answers to windows of a volume are blended in place; the answers of
    others are averaged.
    """

    tensor: torch.Tensor
    per_voxel: ClassVar[bool] = False

    def like(self, tensor: torch.Tensor) -> Prediction:
        """Return the same kind of answer with another tensor."""
        return replace(self, tensor=tensor)


@dataclass
class Probabilities(Prediction):
    """(B, K): of classes that exclude each other they sum to 1; of labels that do not, each lies in 0..1."""


@dataclass
class Masks(Prediction):
    """(B, K, D, H, W): of every voxel the probabilities of classes, which sum to 1, or of regions, each in 0..1."""

    per_voxel: ClassVar[bool] = True


@dataclass
class Values(Prediction):
    """(B,): numbers in the target's unit."""


@dataclass
class Images(Prediction):
    """(B, C, D, H, W): voxels, normalised as the net sees them, such as what was hidden filled in."""

    per_voxel: ClassVar[bool] = True


@dataclass
class Features:
    """What the encoder gives.

    maps: one (B, C_l, D_l, H_l, W_l) a level, shallow to deep. pooled: (B, num_pooled), what timm's own classifier
    sees. size: (D, H, W) of the input.
    """

    maps: list[torch.Tensor]
    pooled: torch.Tensor
    size: Triple

    @property
    def tensor(self) -> torch.Tensor:
        """The pooled vectors: features as a prediction."""
        return self.pooled

    per_voxel: ClassVar[bool] = False

    def like(self, tensor: torch.Tensor) -> Features:
        """Return features with other pooled vectors, and no maps."""
        return replace(self, maps=[], pooled=tensor)
