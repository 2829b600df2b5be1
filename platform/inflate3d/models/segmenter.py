"""create_segmenter: an inflated encoder with a U-Net style decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from inflate3d.contracts import Features
from inflate3d.errors import InputError
from inflate3d.inflation.plan import as_triple
from inflate3d.models.create import create_model
from inflate3d.models.image_size import Fit, Size, fit_size, size_options
from inflate3d.nn.decoder import UNetDecoder
from inflate3d.nn.pyramid import Pyramid
from inflate3d.sample import Triple


class Segmenter(nn.Module):
    """(B, C, D, H, W) -> logits (B, num_classes, D, H, W), for any size.

    An encoder that does not take the frames' H and W as they are gets them padded, and the logits are cropped; or,
    where its size is fixed, resized, and the logits come at the input's size all the same. The log says so once a size.
    torch.compile wants the size known before: give input_size, or run once.
    """

    def __init__(self, encoder: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        info: Any = encoder.feature_info
        reductions: list[Triple] = info.reduction_dhw()
        last = {reduction[1:]: index for index, reduction in enumerate(reductions)}
        self.levels = sorted(last.values())
        """The last map at each reduction; plain ViTs have one."""
        channels = [info.channels()[level] for level in self.levels]
        self.pyramid = Pyramid(channels[0], reductions[self.levels[0]])
        levels: Any = _Levels([*self.pyramid.channels, *channels])
        self.decoder = UNetDecoder(levels, num_classes)
        self.fits: dict[Size, Fit] = {}

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """Return a score for each class at each voxel."""
        depth, height, width = x_BCDHW.shape[2:]
        fit = self._fit(height, width)
        maps = self.encoder(fit.apply(x_BCDHW))
        maps = self.pyramid([maps[level] for level in self.levels])
        size = (depth, *fit.size) if fit.how == "pad" else (depth, height, width)
        logits = self.decoder(Features(maps, maps[-1].mean((2, 3, 4)), size))
        return logits[..., :height, :width]

    def _fit(self, height: int, width: int) -> Fit:
        size = (height, width)
        if size not in self.fits:
            if torch.compiler.is_compiling():
                return Fit("same", size)
            self.fits[size] = fit_size(
                self.encoder,
                size,
                reduction=max(self.encoder.feature_info.reduction()),  # type: ignore[operator, union-attr]
                channels=self.encoder.in_chans_expected,  # type: ignore[arg-type]
                depth=self.encoder.plan.min_depth,  # type: ignore[union-attr, arg-type]
            )
        return self.fits[size]


class Intermediates(nn.Module):
    """The feature maps of a net that timm offers no features_only for, by its forward_intermediates."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.feature_info, self.plan, self.in_chans_expected = net.feature_info, net.plan, net.in_chans_expected
        self.pretrained_cfg = getattr(net, "pretrained_cfg", None)

    def forward(self, x_BCDHW: Tensor) -> list[Tensor]:
        """Return every map that the net names: (B, C_l, D_l, H_l, W_l)."""
        return self.net.forward_intermediates(x_BCDHW, intermediates_only=True)  # type: ignore[operator]


class _Levels(NamedTuple):
    """What a decoder must know of levels that a pyramid made."""

    widths: Sequence[int]

    def channels(self) -> Sequence[int]:
        return self.widths


def create_segmenter(name: str, pretrained: bool = False, *, num_classes: int, **kwargs: Any) -> Segmenter:
    """Return an encoder by any name that create_model takes, with a fresh decoder on top.

    num_classes: voxel classes, the background among them. kwargs: as create_model's (plan, in_chans, input_size, ...).
    input_size also chooses timm's options for nets of a fixed size (img_size=, dynamic_img_size=, strict_img_size=),
    unless one of them is given; without it, nets that can be made to take any size are.
    Raises InputError for names without feature maps, and as create_model does.
    """
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}; a segmenter has at least two, the background among them")
    for given in ("features_only", "global_pool"):
        if given in kwargs:
            raise InputError(f"create_segmenter takes no {given}: the decoder uses the encoder's feature maps")
    size = as_triple(kwargs.get("input_size"), "input_size")
    frame = size[1:] if size else None
    kwargs.update(size_options(name, frame, {k: v for k, v in kwargs.items() if k not in _OURS}))
    segmenter = Segmenter(_encoder(name, pretrained, kwargs), num_classes)
    if frame:
        segmenter._fit(*frame)
    return segmenter


def _encoder(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    try:
        return create_model(name, pretrained, features_only=True, **kwargs)
    except (RuntimeError, AttributeError) as error:
        if "features_only" not in str(error) and "feature_cls" not in str(error):
            raise
    kwargs.pop("out_indices", None)
    net = create_model(name, pretrained, num_classes=0, **kwargs)
    if not hasattr(net, "forward_intermediates") or not hasattr(net, "feature_info"):
        raise InputError(f"{name!r} gives no feature maps to decode; names: platform models list")
    return Intermediates(net)


_OURS = {
    *("inflation", "overshoot", "plan", "attention", "statistics"),
    *("input_size", "spacing_mm", "cache_dir", "norm_domain", "out_indices"),
}
