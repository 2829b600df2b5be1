"""Classification: one class a sample, of whatever medium."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from inflate3d.contracts import AbstractTarget, FeatureInfo, SupervisedTask
from inflate3d.errors import InputError, unknown_name
from inflate3d.nn.heads import head_type
from inflate3d.nn.losses import cross_entropy_loss
from inflate3d.targets.class_label import ClassTarget

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torchmetrics import MetricCollection

_BEST_BY = ("accuracy", "mean_class_accuracy", "auroc")


class ClassificationTask(SupervisedTask):
    """Cross-entropy; accuracy, its mean over the classes that occur, the area under the ROC curve (one against the
    rest, mean over classes), and top-5 with more than five classes. Samples without a class do not count.
    """

    target: ClassVar[type[AbstractTarget] | None] = ClassTarget
    main_metric: str | None = "accuracy"

    def __init__(
        self,
        *,
        datasets: Sequence[str] | Mapping[str, str],
        loss_weight: float = 1.0,
        label_smoothing: float = 0.0,
        dropout: float = 0.0,
        best_by: str = "accuracy",
    ) -> None:
        """label_smoothing: share of the target spread evenly over all classes. dropout: before the linear layer.

        best_by: the metric that goes into val/score, by which the best checkpoint is kept: accuracy,
        mean_class_accuracy or auroc. With few cases the area moves in finer steps than the others.
        """
        super().__init__(datasets=datasets, loss_weight=loss_weight)
        if best_by not in _BEST_BY:
            raise unknown_name("metric", best_by, _BEST_BY, where=f"{type(self).__name__}: best_by")
        self.main_metric = best_by
        for name, value in (("label_smoothing", label_smoothing), ("dropout", dropout)):
            if not 0 <= value < 1:
                raise InputError(f"{type(self).__name__}: {name} is {value}; it must be at least 0 and below 1")
        self.label_smoothing = label_smoothing
        self.dropout = dropout

    def build_head(self, feature_info: FeatureInfo, target: ClassTarget) -> nn.Module:
        """Return a linear head on the pooled features."""
        described = {"num_classes": len(target.names), "dropout": self.dropout}
        return head_type("linear", where=type(self).__name__).rebuild(described, feature_info)

    def loss(self, logits: Tensor, value: Tensor, target: Any) -> dict[str, Tensor]:
        """Return the cross-entropy."""
        return {"loss": cross_entropy_loss(logits, value, label_smoothing=self.label_smoothing)}

    def metrics(self, dataset: str) -> MetricCollection:
        """Return accuracy, mean_class_accuracy, auroc and, with more than five classes, top5."""
        # torchmetrics is not in the light core, where a published head may still be built.
        from torchmetrics import Metric, MetricCollection

        from inflate3d.nn.metrics import Accuracy, MeanClassAccuracy, RocArea

        count = len(self.target_of(dataset).names)
        found: dict[str, Metric | MetricCollection] = {
            "accuracy": Accuracy(),
            "mean_class_accuracy": MeanClassAccuracy(count),
            "auroc": RocArea(count),
        }
        if count > 5:
            found["top5"] = Accuracy(top_k=5)
        return MetricCollection(found)
