"""Volume classification: one class a volume."""

from __future__ import annotations

from typing import ClassVar

from inflate3d.nn import ClassificationTask


class VolumeClassification(ClassificationTask):
    """Cross-entropy on volumes; accuracy, mean class accuracy, AUROC, and top-5 with more than five classes."""

    media: ClassVar[tuple[str, ...]] = ("volume",)
