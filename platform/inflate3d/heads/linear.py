"""One linear layer on the pooled features."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from inflate3d.contracts import FeatureInfo, Features
from inflate3d.nn.heads import Head


class LinearHead(Head):
    """Dropout and one linear layer on the pooled features: (B, num_pooled) -> logits (B, num_classes)."""

    last_layer: ClassVar[str] = "linear."
    classifier: ClassVar[str] = "linear."

    def __init__(self, feature_info: FeatureInfo, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(feature_info.num_pooled, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Features) -> Tensor:
        """Return logits (B, num_classes)."""
        return self.linear(self.dropout(features.pooled))

    def describe(self) -> dict[str, Any]:
        """Return the number of outputs and the dropout."""
        return {"num_classes": self.linear.out_features, "dropout": self.dropout.p}
