"""Action recognition: one class a video clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inflate3d.contracts import AbstractTask, DatasetCard, FeatureInfo, Features, Prediction
from inflate3d.errors import InputError
from inflate3d.nn import LinearHead, cross_entropy_loss

if TYPE_CHECKING:
    from inflate3d.sample import Batch
    from torch import Tensor, nn
    from torchmetrics import MetricCollection


class VideoAction(AbstractTask):
    """Cross-entropy on clips; accuracy, its mean over the classes that occur, and top-5 with more than five classes."""

    kind = "video_classification"
    main_metric = "accuracy"

    def __init__(
        self,
        *,
        datasets: Sequence[str],
        loss_weight: float = 1.0,
        label_smoothing: float = 0.0,
        dropout: float = 0.5,
    ) -> None:
        """label_smoothing: share of the target spread evenly over all classes. dropout: before the linear layer."""
        super().__init__(datasets=datasets, loss_weight=loss_weight)
        for name, value in (("label_smoothing", label_smoothing), ("dropout", dropout)):
            if not 0 <= value < 1:
                raise InputError(f"VideoAction: {name} is {value}; it must be at least 0 and below 1")
        self.label_smoothing = label_smoothing
        self.dropout = dropout

    def build_head(self, feature_info: FeatureInfo, card: DatasetCard) -> nn.Module:
        """Return a linear head on the pooled features."""
        return LinearHead(feature_info.num_pooled, len(card.classes), dropout=self.dropout)

    def loss(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy."""
        logits = self.head(batch.dataset)(features)
        return {"loss": cross_entropy_loss(logits, batch.target, label_smoothing=self.label_smoothing)}

    def metrics(self, card: DatasetCard) -> MetricCollection:
        """Return accuracy, mean_class_accuracy and, with more than five classes, top5."""
        # torchmetrics is not in the light core, where a published head may still be built.
        from inflate3d.nn.metrics import MeanClassAccuracy
        from torchmetrics import Metric, MetricCollection
        from torchmetrics.classification import MulticlassAccuracy

        count = len(card.classes)
        found: dict[str, Metric | MetricCollection] = {
            "accuracy": MulticlassAccuracy(count, average="micro"),
            "mean_class_accuracy": MeanClassAccuracy(count),
        }
        if count > 5:
            found["top5"] = MulticlassAccuracy(count, average="micro", top_k=5)
        return MetricCollection(found)

    def predict(self, features: Features, batch: Batch) -> Prediction:
        """Return class probabilities (B, K)."""
        return Prediction(self.head(batch.dataset)(features).float().softmax(dim=1))
