"""create_segmenter: an inflated encoder with a U-Net style decoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from inflate3d.contracts import Features
from inflate3d.errors import InputError
from inflate3d.models.create import create_model
from inflate3d.nn.decoder import UNetDecoder


class Segmenter(nn.Module):
    """(B, C, D, H, W) -> logits (B, num_classes, D, H, W), for any size that the encoder takes."""

    def __init__(self, encoder: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = UNetDecoder(encoder.feature_info, num_classes)  # type: ignore[arg-type]

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """Return a score for each class at each voxel."""
        maps = self.encoder(x_BCDHW)
        depth, height, width = x_BCDHW.shape[2:]
        return self.decoder(Features(maps, maps[-1].mean((2, 3, 4)), (depth, height, width)))


def create_segmenter(name: str, pretrained: bool = False, *, num_classes: int, **kwargs: Any) -> Segmenter:
    """Return an encoder by any name that create_model takes, with a fresh decoder on top.

    num_classes: voxel classes, the background among them. kwargs: as create_model's (plan, in_chans, input_size, ...).
    Raises InputError for names without feature maps, and as create_model does.
    """
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}; a segmenter has at least two, the background among them")
    for given in ("features_only", "global_pool"):
        if given in kwargs:
            raise InputError(f"create_segmenter takes no {given}: the decoder uses the encoder's feature maps")
    encoder = create_model(name, pretrained, features_only=True, **kwargs)
    return Segmenter(encoder, num_classes)
