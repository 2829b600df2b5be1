"""Prototypes: directions that pooled features are assigned to, evenly over a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inflate3d.contracts import Features


class PrototypeHead(nn.Module):
    """A small net to unit vectors, and their cosines with learned prototypes: (B, num_pooled) -> (B, prototypes)."""

    def __init__(self, num_pooled: int, width: int, prototypes: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(num_pooled, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.directions = nn.Linear(width, prototypes, bias=False)

    def forward(self, features: Features) -> Tensor:
        """Return cosines (B, prototypes), float32."""
        vectors = F.normalize(self.project(features.pooled).float(), dim=1)
        return vectors @ F.normalize(self.directions.weight.float(), dim=1).T


def even_assignments(cosines: Tensor, *, temperature: float, rounds: int = 3) -> Tensor:
    """Return soft assignments (B, K) whose rows sum to 1 and whose columns are as even as the batch allows.

    Sinkhorn-Knopp on exp(cosines / temperature) (Cuturi, arXiv:1306.0895; SwAV, arXiv:2006.09882), in float64.
    """
    logs = cosines.double() / temperature
    for _ in range(rounds):
        logs = logs - logs.logsumexp(dim=0, keepdim=True)
        logs = logs - logs.logsumexp(dim=1, keepdim=True)
    return logs.exp().to(torch.float32)
