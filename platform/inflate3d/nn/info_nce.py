"""InfoNCE: of all candidates the right one is the most alike; and the projections that it compares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inflate3d.contracts import Features


def info_nce(a: Tensor, b: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the loss of pairs (N, C), both ways, and the share of rows of `a` whose nearest in `b` is their own.

    Cross-entropy over cosine similarities divided by the temperature (van den Oord et al., arXiv:1807.03748, eq. 4;
    both ways as in SimCLR, arXiv:2002.05709).
    """
    logits = _cosines(a, b) / temperature
    own = torch.arange(len(a), device=a.device)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    return loss, (logits.argmax(1) == own).float().mean()


def nearest(a: Tensor, b: Tensor) -> Tensor:
    """Return for each row of `a` (N, C) which row of `b` (M, C) is the most alike, (N,)."""
    return _cosines(a, b).argmax(1)


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    return F.normalize(a.float(), dim=1) @ F.normalize(b.float(), dim=1).T


class LevelProjections(nn.Module):
    """A small net of 1x1x1 convolutions for each level, to maps of one width."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv3d(c, width, 1), nn.GELU(), nn.Conv3d(width, width, 1)) for c in channels
        )

    def of(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps (B, width, D_l, H_l, W_l), one a level."""
        return [level(m) for level, m in zip(self.levels, maps, strict=True)]

    def forward(self, features: Features) -> Tensor:
        """Return the sum of all projected maps: what an idle step touches."""
        return torch.stack([m.sum() for m in self.of(features.maps)]).sum()
