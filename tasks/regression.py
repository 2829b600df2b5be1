"""Regression: one number a sample, such as an age."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from inflate3d.contracts import AbstractTarget, FeatureInfo, SupervisedTask
from inflate3d.errors import InputError
from inflate3d.heads.value import ValueHead
from inflate3d.nn import known_mean
from inflate3d.targets.value import ValueTarget

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torchmetrics import MetricCollection


class Regression(SupervisedTask):
    """Squared error in units of `scale`; the mean absolute error, and R2. Samples without a value do not count."""

    target: ClassVar[type[AbstractTarget] | None] = ValueTarget
    main_metric: str | None = "r2"

    def __init__(
        self,
        *,
        datasets: Sequence[str] | Mapping[str, str],
        scale: float,
        centre: float = 0.0,
        loss_weight: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        """centre, scale: about the mean and standard deviation of the values (`platform shards info`), in their unit.

        The head answers centre + scale * its layer; the loss is ((answer - value) / scale)^2.
        """
        super().__init__(datasets=datasets, loss_weight=loss_weight)
        if not scale > 0:
            raise InputError(f"Regression: scale is {scale}; it must be above 0")
        if not 0 <= dropout < 1:
            raise InputError(f"Regression: dropout is {dropout}; it must be at least 0 and below 1")
        self.scale, self.centre, self.dropout = float(scale), float(centre), dropout

    def build_head(self, feature_info: FeatureInfo, target: Any) -> nn.Module:
        """Return a linear head with one output, in the target's unit."""
        return ValueHead(feature_info, centre=self.centre, scale=self.scale, dropout=self.dropout)

    def loss(self, logits: Tensor, value: Tensor, target: Any) -> dict[str, Tensor]:
        """Return the mean squared error."""
        error = (logits.float() - value.nan_to_num()) / self.scale
        return {"loss": known_mean(error.square(), value)}

    def metrics(self, dataset: str) -> MetricCollection:
        """Return mae and r2."""
        # torchmetrics is not in the light core, where a published head may still be built.
        from inflate3d.nn.metrics import ValueErrors
        from torchmetrics import MetricCollection

        return MetricCollection({"r2": ValueErrors()})
