"""Medical segmentation: one class a voxel, or regions that lie in each other, by a U-Net style decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from inflate3d.contracts import AbstractTarget, FeatureInfo, SupervisedTask
from inflate3d.errors import InputError
from inflate3d.heads.unet import UNetDecoder
from inflate3d.nn import cross_entropy_loss, merge_unannotated, region_loss, soft_dice_loss
from inflate3d.targets.mask import MaskTarget, united

if TYPE_CHECKING:
    from inflate3d.contracts import DatasetCard, Encoder
    from inflate3d.sample import Batch
    from torch import Tensor, nn
    from torchmetrics import MetricCollection

SHARED = "shared"
"""The name of the one decoder among the task's modules."""


class MedicalSegmentation(SupervisedTask):
    """Cross-entropy plus soft Dice on patches; Dice of whole volumes, by class and their mean over the foreground.

    Classes that a dataset did not annotate count as its background, and are in neither Dice. A shared decoder tells the
    classes of all its datasets apart; those that a dataset does not name are not annotated in it. Regions are told each
    by itself: binary cross-entropy plus soft Dice of their sigmoids, as nnU-Net does. Ignored voxels are in none of it.
    """

    media: ClassVar[tuple[str, ...]] = ("volume",)
    target: ClassVar[type[AbstractTarget] | None] = MaskTarget
    main_metric: str | None = "dice"

    def __init__(
        self,
        *,
        datasets: Sequence[str] | Mapping[str, str],
        loss_weight: float = 1.0,
        dice_weight: float = 1.0,
        decoder_channels: Sequence[int] | None = None,
        shared: bool = False,
    ) -> None:
        """dice_weight: loss = cross-entropy + dice_weight * (1 - soft Dice).

        decoder_channels: widths of the decoder, at full resolution and then shallow to deep, one a backbone level.
        shared: one decoder for all datasets, to the classes of all by their names; False: one a dataset.
        """
        super().__init__(datasets=datasets, loss_weight=loss_weight)
        if shared and SHARED in self.datasets:
            raise InputError(f"MedicalSegmentation: a dataset is called {SHARED!r}, as the decoder would; rename it")
        if dice_weight < 0:
            raise InputError(f"MedicalSegmentation: dice_weight is {dice_weight}; it must not be negative")
        self.dice_weight = dice_weight
        self.decoder_channels = decoder_channels
        self.shared = shared
        self._targets: dict[str, MaskTarget] = {}

    def bind(self, cards: Mapping[str, DatasetCard]) -> None:
        """Take the cards, and unite their classes where the decoder is shared; InputError as of `united`."""
        super().bind(cards)
        own = {d: cast(MaskTarget, self.cards[d].targets[self.target_names[d]]) for d in self.datasets}
        self._targets = united(own) if self.shared else own
        for dataset, target in self._targets.items():
            if not target.scored:
                raise InputError(
                    f"MedicalSegmentation: nothing but background is annotated in {dataset}; the target is "
                    f"{target.describe()}"
                )

    def target_of(self, dataset: str) -> MaskTarget:
        """Return the dataset's classes; of a shared decoder those of all datasets, of which it annotated some."""
        return self._targets[dataset]

    def build(self, encoder: Encoder) -> None:
        """Make a decoder for each dataset, or one for all."""
        if self.shared:
            decoder = self.build_head(encoder.feature_info, self._targets[self.datasets[0]])
            self.heads = dict.fromkeys(self.datasets, decoder)
        else:
            super().build(encoder)

    def modules(self) -> dict[str, nn.Module]:
        """The decoders by dataset, or the shared one."""
        return {SHARED: self.heads[self.datasets[0]]} if self.shared else self.heads

    def head_of(self, dataset: str) -> nn.Module:
        """Return the decoder that serves a dataset."""
        return self.heads[dataset]

    def label_names(self, dataset: str) -> tuple[str, ...]:
        """Return the dataset's own classes in the order of its labels, the background under the name of all."""
        own = self.cards[dataset].targets[self.target_names[dataset]].names
        return (self._targets[dataset].names[0], *own[1:])

    def value(self, batch: Batch) -> Tensor:
        """Return the label map (B, D, H, W), each label the index of its class in `target_of`."""
        value, names = super().value(batch), self._targets[batch.dataset].names
        place = [names.index(name) for name in self.label_names(batch.dataset)]
        return value if place == list(range(len(place))) else value.new_tensor(place)[value]

    def build_head(self, feature_info: FeatureInfo, target: MaskTarget) -> nn.Module:
        """Return a decoder to the voxel classes, or the regions."""
        levels = len(feature_info.channels())
        if self.decoder_channels is not None and len(self.decoder_channels) != levels:
            given = list(self.decoder_channels)
            raise InputError(
                f"MedicalSegmentation: decoder_channels {given} has {len(given)} widths; the backbone has "
                f"{levels} levels, give one width a level, or leave it out"
            )
        return UNetDecoder(feature_info, len(target.answers), channels=self.decoder_channels)

    def loss(self, logits: Tensor, value: Tensor, target: MaskTarget) -> dict[str, Tensor]:
        """Return the sum as "loss", and its parts."""
        if target.regions:
            cross_entropy, dice = region_loss(logits, target.inside(value))
        else:
            unannotated = [target.classes.index(label) for label in target.unannotated]
            logits, value = merge_unannotated(logits, target.channels(value), unannotated)
            cross_entropy = cross_entropy_loss(logits, value)
            dice = soft_dice_loss(logits, value, are_all_known=not target.ignored)
        return {
            "loss": cross_entropy + self.dice_weight * dice,
            "cross_entropy": cross_entropy.detach(),
            "dice_loss": dice.detach(),
        }

    def metrics(self, dataset: str) -> MetricCollection:
        """Return dice and dice_<class>, or dice_<region>."""
        # torchmetrics is not in the light core, where a published segmenter may still be built.
        from inflate3d.nn.metrics import VolumeDice
        from torchmetrics import MetricCollection

        return MetricCollection({"dice": VolumeDice(self.target_of(dataset))})
