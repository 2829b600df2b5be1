"""Multi-label classification: several findings a sample, each there or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from inflate3d.contracts import AbstractTarget, FeatureInfo, SupervisedTask
from inflate3d.errors import InputError
from inflate3d.heads.linear import LinearHead
from inflate3d.nn import known_mean
from inflate3d.targets.multi_label import MultiLabelTarget
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torchmetrics import MetricCollection


class MultiLabel(SupervisedTask):
    """Binary cross-entropy of each label; the mean area under the ROC curve. Labels that are not known do not count."""

    target: ClassVar[type[AbstractTarget] | None] = MultiLabelTarget
    main_metric: str | None = "auroc"

    def __init__(
        self, *, datasets: Sequence[str] | Mapping[str, str], loss_weight: float = 1.0, dropout: float = 0.0
    ) -> None:
        """dropout: before the linear layer."""
        super().__init__(datasets=datasets, loss_weight=loss_weight)
        if not 0 <= dropout < 1:
            raise InputError(f"MultiLabel: dropout is {dropout}; it must be at least 0 and below 1")
        self.dropout = dropout

    def build_head(self, feature_info: FeatureInfo, target: MultiLabelTarget) -> nn.Module:
        """Return a linear head on the pooled features."""
        return LinearHead(feature_info, len(target.names), dropout=self.dropout)

    def loss(self, logits: Tensor, value: Tensor, target: Any) -> dict[str, Tensor]:
        """Return the mean over the known labels of all samples."""
        each = F.binary_cross_entropy_with_logits(logits.float(), value.nan_to_num(), reduction="none")
        return {"loss": known_mean(each, value)}

    def metrics(self, dataset: str) -> MetricCollection:
        """Return auroc and auroc_<label>."""
        # torchmetrics is not in the light core, where a published head may still be built.
        from inflate3d.nn.metrics import LabelRocArea
        from torchmetrics import MetricCollection

        return MetricCollection({"auroc": LabelRocArea(self.target_of(dataset).names)})
