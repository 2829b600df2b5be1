"""One number from the pooled features, in the unit of its target."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from inflate3d.contracts import FeatureInfo, Features
from inflate3d.nn.heads import Head


class ValueHead(Head):
    """centre + scale * one linear layer on the pooled features: (B, num_pooled) -> (B,).

    centre and scale are fixed, in the target's unit; they keep what is learned near 0 and 1.
    """

    last_layer: ClassVar[str] = "linear."

    def __init__(
        self, feature_info: FeatureInfo, *, centre: float = 0.0, scale: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.centre, self.scale = centre, scale
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(feature_info.num_pooled, 1)
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Features) -> Tensor:
        """Return numbers (B,), float32 whatever the precision of the layer: half a digit of an age would be lost."""
        return self.centre + self.scale * self.linear(self.dropout(features.pooled)).squeeze(1).float()

    def describe(self) -> dict[str, Any]:
        """Return centre, scale and dropout."""
        return {"centre": self.centre, "scale": self.scale, "dropout": self.dropout.p}
