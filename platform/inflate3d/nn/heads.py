"""The linear classification head."""

from __future__ import annotations

from torch import Tensor, nn

from inflate3d.contracts import Features


class LinearHead(nn.Module):
    """Dropout and one linear layer on the pooled features: (B, num_pooled) -> logits (B, num_classes)."""

    def __init__(self, num_pooled: int, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(num_pooled, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Features) -> Tensor:
        """Return logits (B, num_classes)."""
        return self.linear(self.dropout(features.pooled))
