"""Masked volume modelling: blocks of a volume are hidden, a decoder tells their voxels (arXiv:2111.06377)."""

# B batch, C channel, D H W voxels along z y x.

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inflate3d.contracts import AbstractTask, Encoder
from inflate3d.errors import InputError
from inflate3d.heads.unet import UNetDecoder
from inflate3d.seeds import mix

if TYPE_CHECKING:
    from inflate3d.sample import Batch
    from torch import Tensor, nn


class HiddenBlocks(AbstractTask):
    """Mean squared error of the hidden voxels, as they are normalised. Needs no labels."""

    media = ("volume",)

    def __init__(
        self, *, datasets: Sequence[str], loss_weight: float = 1.0, hidden: float = 0.6, block: int = 8
    ) -> None:
        """hidden: share of the blocks that are hidden. block: their edge in voxels."""
        super().__init__(datasets=datasets, loss_weight=loss_weight)
        if not 0 < hidden < 1:
            raise InputError(f"HiddenBlocks: hidden is {hidden}; it must be above 0 and below 1")
        self.hidden, self.block = hidden, block

    def build(self, encoder: Encoder) -> None:
        """Make a decoder for each dataset, to as many channels as it has."""
        info = encoder.feature_info
        self.decoders = {name: UNetDecoder(info, len(card.input.channels)) for name, card in self.cards.items()}

    def modules(self) -> dict[str, nn.Module]:
        """The decoders, by dataset."""
        return self.decoders

    def step(self, encoder: Encoder, batch: Batch, *, seed: int) -> dict[str, Tensor]:
        """Hide blocks, decode, and compare where they were."""
        is_hidden = self.draw(batch.image, seed)
        features = encoder(batch.image.masked_fill(is_hidden, 0.0), domain=batch.dataset)
        error = (self.decoders[batch.dataset](features).float() - batch.image).square()
        return {"loss": (error * is_hidden).sum() / (is_hidden.sum() * batch.image.shape[1]).clamp_min(1)}

    def draw(self, image_BCDHW: Tensor, seed: int) -> Tensor:
        """Return what is hidden, (B, 1, D, H, W) bool: a function of the seed alone."""
        import torch
        from torch.nn.functional import interpolate

        size = image_BCDHW.shape[2:]
        blocks = [-(-n // self.block) for n in size]
        generator = torch.Generator().manual_seed(mix(seed, "hidden"))
        drawn = torch.rand(len(image_BCDHW), 1, *blocks, generator=generator) < self.hidden
        whole = interpolate(drawn.float(), scale_factor=self.block, mode="nearest")
        return whole[..., : size[0], : size[1], : size[2]].bool().to(image_BCDHW.device)
