"""Medical segmentation: one class a voxel, by a U-Net style decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inflate3d.contracts import AbstractTask, DatasetCard, FeatureInfo, Features, Prediction
from inflate3d.errors import InputError
from inflate3d.nn import UNetDecoder, cross_entropy_loss, soft_dice_loss

if TYPE_CHECKING:
    from inflate3d.sample import Batch
    from torch import Tensor, nn
    from torchmetrics import MetricCollection


class MedicalSegmentation(AbstractTask):
    """Cross-entropy plus soft Dice on patches; Dice of whole volumes, by class and their mean over the foreground."""

    kind = "volume_segmentation"
    main_metric = "dice"

    def __init__(
        self,
        *,
        datasets: Sequence[str],
        loss_weight: float = 1.0,
        dice_weight: float = 1.0,
        decoder_channels: Sequence[int] | None = None,
    ) -> None:
        """dice_weight: loss = cross-entropy + dice_weight * (1 - soft Dice).

        decoder_channels: widths of the decoder, at full resolution and then shallow to deep, one a backbone level.
        """
        super().__init__(datasets=datasets, loss_weight=loss_weight)
        if dice_weight < 0:
            raise InputError(f"MedicalSegmentation: dice_weight is {dice_weight}; it must not be negative")
        self.dice_weight = dice_weight
        self.decoder_channels = decoder_channels

    def build_head(self, feature_info: FeatureInfo, card: DatasetCard) -> nn.Module:
        """Return a decoder to the voxel classes."""
        levels = len(feature_info.channels())
        if self.decoder_channels is not None and len(self.decoder_channels) != levels:
            given = list(self.decoder_channels)
            raise InputError(
                f"MedicalSegmentation: decoder_channels {given} has {len(given)} widths; the backbone has "
                f"{levels} levels, give one width a level, or leave it out"
            )
        return UNetDecoder(feature_info, len(card.classes), channels=self.decoder_channels)

    def loss(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """Return the sum as "loss", and its parts."""
        logits = self.head(batch.dataset)(features)
        cross_entropy = cross_entropy_loss(logits, batch.target)
        dice = soft_dice_loss(logits, batch.target)
        return {
            "loss": cross_entropy + self.dice_weight * dice,
            "cross_entropy": cross_entropy.detach(),
            "dice_loss": dice.detach(),
        }

    def metrics(self, card: DatasetCard) -> MetricCollection:
        """Return dice and dice_<class>."""
        # torchmetrics is not in the light core, where a published segmenter may still be built.
        from inflate3d.nn.metrics import VolumeDice
        from torchmetrics import MetricCollection

        return MetricCollection({"dice": VolumeDice(card.classes)})

    def predict(self, features: Features, batch: Batch) -> Prediction:
        """Return class probabilities (B, K, D, H, W)."""
        return Prediction(self.head(batch.dataset)(features).float().softmax(dim=1))
