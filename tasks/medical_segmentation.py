"""Medical segmentation: one class a voxel, by a U-Net style decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from inflate3d.contracts import AbstractTarget, FeatureInfo, SupervisedTask
from inflate3d.errors import InputError
from inflate3d.heads.unet import UNetDecoder
from inflate3d.nn import cross_entropy_loss, merge_unannotated, soft_dice_loss
from inflate3d.targets.mask import MaskTarget

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torchmetrics import MetricCollection


class MedicalSegmentation(SupervisedTask):
    """Cross-entropy plus soft Dice on patches; Dice of whole volumes, by class and their mean over the foreground.

    Classes that a dataset did not annotate count as its background, and are in neither Dice.
    """

    media: ClassVar[tuple[str, ...]] = ("volume",)
    target: ClassVar[type[AbstractTarget] | None] = MaskTarget
    main_metric: ClassVar[str | None] = "dice"

    def __init__(
        self,
        *,
        datasets: Sequence[str] | Mapping[str, str],
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

    def build_head(self, feature_info: FeatureInfo, target: MaskTarget) -> nn.Module:
        """Return a decoder to the voxel classes."""
        levels = len(feature_info.channels())
        if self.decoder_channels is not None and len(self.decoder_channels) != levels:
            given = list(self.decoder_channels)
            raise InputError(
                f"MedicalSegmentation: decoder_channels {given} has {len(given)} widths; the backbone has "
                f"{levels} levels, give one width a level, or leave it out"
            )
        if len(target.unannotated) == len(target.names) - 1:
            raise InputError(
                f"MedicalSegmentation: nothing but background is annotated; the target is {target.describe()}"
            )
        return UNetDecoder(feature_info, len(target.names), channels=self.decoder_channels)

    def loss(self, logits: Tensor, value: Tensor, target: MaskTarget) -> dict[str, Tensor]:
        """Return the sum as "loss", and its parts."""
        logits, value = merge_unannotated(logits, value, target.unannotated)
        cross_entropy = cross_entropy_loss(logits, value)
        dice = soft_dice_loss(logits, value)
        return {
            "loss": cross_entropy + self.dice_weight * dice,
            "cross_entropy": cross_entropy.detach(),
            "dice_loss": dice.detach(),
        }

    def metrics(self, dataset: str) -> MetricCollection:
        """Return dice and dice_<class>."""
        # torchmetrics is not in the light core, where a published segmenter may still be built.
        from inflate3d.nn.metrics import VolumeDice
        from torchmetrics import MetricCollection

        target: Any = self.target_of(dataset)
        return MetricCollection({"dice": VolumeDice(target.names, target.unannotated)})
