"""Masked volume modelling: blocks of a volume or clip are hidden, and a decoder tells their voxels. Needs no labels."""

# B batch, C channel, D H W voxels along z y x, or time and pixels.

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from inflate3d.contracts import AbstractTask, Encoder, Exhibit, Images, Panel
from inflate3d.errors import InputError
from inflate3d.heads.unet import UNetDecoder
from inflate3d.nn.masking import block_statistics, draw_blocks
from inflate3d.seeds import mix

if TYPE_CHECKING:
    from inflate3d.sample import Batch, Triple
    from torch import Tensor, nn


class MaskedVolume(AbstractTask):
    """Squared error of the hidden voxels, each block normalised by its own mean and deviation.

    For convolutional and token nets alike: hidden voxels are 0, and all maps go through a U-Net decoder. `explained`
    is the share of the hidden voxels' variance that the answer explains; 0 is what a block's mean would reach.

    After MAE (arXiv:2111.06377), SimMIM (arXiv:2111.09886), and for tubes VideoMAE (arXiv:2203.12602).
    """

    measured: ClassVar[tuple[str, ...]] = ("loss", "explained")

    def __init__(
        self,
        *,
        datasets: Sequence[str],
        loss_weight: float = 1.0,
        hidden: float = 0.6,
        block: int = 8,
        tube: bool = False,
        decoder_channels: Sequence[int] | None = None,
    ) -> None:
        """hidden: share of the blocks that are hidden. block: their edge in voxels. tube: they go through all of D,
        so that a still scene cannot be copied from the next frame.

        decoder_channels: widths of the decoder, at full resolution and then shallow to deep, one a backbone level.
        """
        super().__init__(datasets=datasets, loss_weight=loss_weight)
        if not 0 < hidden < 1:
            raise InputError(f"MaskedVolume: hidden is {hidden}; it must be above 0 and below 1")
        if block < 2:
            raise InputError(f"MaskedVolume: block is {block}; it must be at least 2 voxels")
        self.hidden, self.block, self.tube = hidden, block, tube
        self.decoder_channels = decoder_channels

    def build(self, encoder: Encoder) -> None:
        """Make a decoder for each dataset, to as many channels as it has."""
        info, widths = encoder.feature_info, self.decoder_channels
        if widths is not None and len(widths) != len(info.channels()):
            raise InputError(
                f"MaskedVolume: decoder_channels has {len(widths)} widths; the backbone has {len(info.channels())} "
                "levels, give one width a level, or leave it out"
            )
        self.decoders = {
            name: UNetDecoder(info, len(card.input.channels), channels=widths) for name, card in self.cards.items()
        }

    def modules(self) -> dict[str, nn.Module]:
        """The decoders, by dataset."""
        return dict(self.decoders)

    def step(self, encoder: Encoder, batch: Batch, *, seed: int) -> dict[str, Tensor]:
        """Hide blocks, decode, and compare where they were."""
        is_hidden = self.draw(batch.image, seed)
        mean, deviation = block_statistics(batch.image, block=self.blocks(batch.image))
        wanted = (batch.image.float() - mean) / deviation
        error = (self._told(encoder, batch, is_hidden) - wanted).square()
        count = (is_hidden.sum() * wanted.shape[1]).clamp_min(1)
        loss = (error * is_hidden).sum() / count
        variance = (wanted.square() * is_hidden).sum() / count
        return {"loss": loss, "explained": (1 - loss / variance.clamp_min(1e-6)).detach()}

    def predict(self, encoder: Encoder, batch: Batch) -> Images:
        """Return the image with its hidden blocks filled in, (B, C, D, H, W) in normalised voxels.

        The answer tells a block's pattern; the mean and deviation are those of what is hidden.
        """
        return Images(self._filled(encoder, batch, self.draw(batch.image, mix(0, "shown"))))

    def show(self, encoder: Encoder, batch: Batch, *, seed: int) -> list[Exhibit]:
        """Return the image, what the net sees of it, and what it fills in, as in a step of this seed."""
        is_hidden = self.draw(batch.image, seed)
        filled = self._filled(encoder, batch, is_hidden)
        seen = batch.image.masked_fill(is_hidden, 0.0)
        share = float(is_hidden.float().mean())
        rows = zip(batch.image, seen, filled, strict=True)
        return [
            Exhibit(
                f"{share:.0%} hidden in blocks of {' x '.join(map(str, self.blocks(batch.image)))}",
                [Panel("image", image), Panel("seen", part), Panel("filled in", told)],
                one_scale=True,
            )
            for image, part, told in rows
        ]

    def _told(self, encoder: Encoder, batch: Batch, is_hidden: Tensor) -> Tensor:
        """Return each voxel, normalised by its block, as the decoder tells it from what is not hidden."""
        features = encoder(batch.image.masked_fill(is_hidden, 0.0), domain=batch.dataset)
        told: Tensor = self.decoders[batch.dataset](features).float()
        return told

    def _filled(self, encoder: Encoder, batch: Batch, is_hidden: Tensor) -> Tensor:
        mean, deviation = block_statistics(batch.image, block=self.blocks(batch.image))
        filled = mean + deviation * self._told(encoder, batch, is_hidden)
        return filled.where(is_hidden, batch.image.float())

    def blocks(self, image_BCDHW: Tensor) -> Triple:
        """Return (D, H, W) of a block. InputError where an image is smaller than one."""
        depth, height, width = image_BCDHW.shape[2:]
        block = (depth if self.tube else self.block, self.block, self.block)
        if any(n < edge for n, edge in zip((depth, height, width), block, strict=True)):
            raise InputError(
                f"MaskedVolume: an image of {depth} x {height} x {width} voxels is smaller than a block of "
                f"{' x '.join(map(str, block))}; give a smaller block, larger images, or tube: true if D alone is short"
            )
        return block

    def draw(self, image_BCDHW: Tensor, seed: int) -> Tensor:
        """Return what is hidden, (B, 1, D, H, W) bool: a function of the seed alone."""
        import torch

        size: Triple = tuple(image_BCDHW.shape[2:])  # type: ignore[assignment]
        generator = torch.Generator().manual_seed(mix(seed, "hidden"))
        drawn = draw_blocks(
            len(image_BCDHW), size, block=self.blocks(image_BCDHW), share=self.hidden, generator=generator
        )
        return drawn.to(image_BCDHW.device)
