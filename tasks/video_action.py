"""Action recognition: one class a video clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from inflate3d.nn import ClassificationTask


class VideoAction(ClassificationTask):
    """Cross-entropy on clips; accuracy, mean class accuracy, AUROC, and top-5 with more than five classes."""

    media: ClassVar[tuple[str, ...]] = ("video",)

    def __init__(
        self,
        *,
        datasets: Sequence[str] | Mapping[str, str],
        loss_weight: float = 1.0,
        label_smoothing: float = 0.0,
        dropout: float = 0.5,
        best_by: str = "accuracy",
    ) -> None:
        """label_smoothing, dropout, best_by: as in ClassificationTask; clips are alike, so half is dropped."""
        super().__init__(
            datasets=datasets,
            loss_weight=loss_weight,
            label_smoothing=label_smoothing,
            dropout=dropout,
            best_by=best_by,
        )
