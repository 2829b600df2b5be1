"""create_segmenter: an inflated encoder with a U-Net style decoder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from inflate3d.contracts import AbstractTarget, FeatureInfo, Features
from inflate3d.errors import InputError, unknown_name
from inflate3d.heads.unet import UNetDecoder
from inflate3d.inflation import Inflation
from inflate3d.inflation.kernels import of_any_rank
from inflate3d.inflation.plan import as_triple
from inflate3d.models.create import create_model
from inflate3d.models.publication.fetch import check_directory, published_folder
from inflate3d.models.publication.heads import is_per_voxel, load_head, target_of
from inflate3d.models.publication.layout import PREFIX
from inflate3d.models.publication.schema import read_published_config
from inflate3d.models.sources.image_size import Fit, Size, fit_size, size_options
from inflate3d.nn import Head
from inflate3d.nn.pyramid import Pyramid
from inflate3d.sample import Triple

_log = logging.getLogger("inflate3d")


class Segmenter(nn.Module):
    """(B, C, D, H, W) -> logits (B, num_classes, D, H, W), for any size.

    An encoder that does not take the frames' H and W as they are gets them padded, and the logits are cropped; or,
    where its size is fixed, resized, and the logits come at the input's size all the same. The log says so once a size.
    torch.compile wants the size known before: give input_size, or run once.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int,
        *,
        make_decoder: Callable[[FeatureInfo], Head] | None = None,
        with_pyramid: bool = True,
    ) -> None:
        """make_decoder: from the levels to the decoder; default a UNetDecoder. with_pyramid: finer levels before the
        finest map of a plain ViT.
        """
        super().__init__()
        self.encoder = encoder
        info: Any = encoder.feature_info
        reductions: list[Triple] = info.reduction_dhw()
        last = {reduction[1:]: index for index, reduction in enumerate(reductions)}
        self.levels = sorted(last.values())
        """The last map at each reduction; plain ViTs have one."""
        channels = [info.channels()[level] for level in self.levels]
        self.pyramid = Pyramid(channels[0], reductions[self.levels[0]]) if with_pyramid else None
        finer = self.pyramid.channels if self.pyramid is not None else []
        levels: Any = _Levels([*finer, *channels])
        self.decoder = make_decoder(levels) if make_decoder is not None else UNetDecoder(levels, num_classes)
        self.input_spec = getattr(encoder, "input_spec", None)
        self.label_names: list[str] = []
        """What the logits are of, where published weights say it: classes, the background first, or regions."""
        self.target: AbstractTarget | None = None
        """What a published segmenter answers for; it turns logits into probabilities and label maps."""
        self.window: Triple | None = None
        """(D, H, W) of the sliding window that a published segmenter was validated with."""
        self.window_overlap = 0.5
        self.fits: dict[Size, Fit] = {}

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """Return a score for each class at each voxel."""
        depth, height, width = x_BCDHW.shape[2:]
        fit = self._fit(height, width)
        maps = self.encoder(fit.apply(x_BCDHW))
        maps = [maps[level] for level in self.levels]
        if self.pyramid is not None:
            maps = self.pyramid(maps)
        size = (depth, *fit.size) if fit.how == "pad" else (depth, height, width)
        logits = self.decoder(Features(maps, maps[-1].mean((2, 3, 4)), size))
        return logits[..., :height, :width]

    def label_map(self, logits_BKDHW: Tensor) -> Tensor:
        """Return each voxel's label, (B, D, H, W) int64: its likeliest class, or what its regions are written as."""
        if self.target is None:
            return logits_BKDHW.argmax(dim=1)
        return self.target.label_map(self.target.answer(logits_BKDHW).tensor)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Segmenter:
        """As nn.Module's; memory formats for four axes fit kernels of five as well, and the other way round."""
        return super()._apply(of_any_rank(fn), recurse)

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
        self.input_spec = getattr(net, "input_spec", None)

    def forward(self, x_BCDHW: Tensor) -> list[Tensor]:
        """Return every map that the net names: (B, C_l, D_l, H_l, W_l)."""
        return self.net.forward_intermediates(x_BCDHW, intermediates_only=True)  # type: ignore[operator]


class _Levels(NamedTuple):
    """What a decoder must know of levels that a pyramid made."""

    widths: Sequence[int]

    def channels(self) -> Sequence[int]:
        return self.widths


def create_segmenter(
    name: str, pretrained: bool = False, *, num_classes: int | None = None, head: str | None = None, **kwargs: Any
) -> Segmenter:
    """Return an encoder by any name that create_model takes, with a decoder on top.

    The decoder is fresh, but for published weights with a segmenter (pretrained=True): then it is loaded whole, with
    its classes' names (`label_names`); head names the dataset where there are several. num_classes: voxel classes, the
    background among them; another number than the published one puts a fresh last layer on the published decoder.
    kwargs: as create_model's (plan, in_chans, input_size, ...).
    input_size also chooses timm's options for nets of a fixed size (img_size=, dynamic_img_size=, strict_img_size=),
    unless one of them is given; without it, nets that can be made to take any size are.
    Raises InputError for names without feature maps, and as create_model does.
    """
    for given in ("features_only", "global_pool"):
        if given in kwargs:
            raise InputError(f"create_segmenter takes no {given}: the decoder uses the encoder's feature maps")
    if pretrained and (whole := published_segmenter(name, num_classes, head, kwargs)) is not None:
        return whole
    if head is not None:
        raise InputError(f"head={head!r}: {name!r} has no published segmenter, or pretrained=True is missing")
    if num_classes is None:
        raise InputError(f"num_classes is missing: {name!r} brings no segmenter of its own")
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}; a segmenter has at least two, the background among them")
    size = as_triple(kwargs.get("input_size"), "input_size")
    frame = size[1:] if size else None
    try:
        kwargs.update(size_options(name, frame, {k: v for k, v in kwargs.items() if k not in _OURS}))
        segmenter = Segmenter(_encoder(name, pretrained, kwargs), num_classes)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise InputError(
            f"create_segmenter({name!r}): {error}. It takes num_classes, head, create_model's options, and those of "
            "the 2D net; the decoder has none: build inflate3d.models.segmenter.Segmenter for another one"
        ) from error
    if frame:
        segmenter._fit(*frame)
    return segmenter


def published_segmenter(
    name: str, num_classes: int | None, head: str | None, kwargs: dict[str, Any]
) -> Segmenter | None:
    """Return a published segmenter whole; None where a name brings none. InputError where one must be chosen."""
    folder = published_folder(name, kwargs.get("cache_dir"))
    if folder is None:
        return None
    config = read_published_config(folder)
    heads = {n: h for n, h in config.get("heads", {}).items() if is_per_voxel(h)}
    if head is None:
        own = [n for n, h in heads.items() if h["dataset"] == config["input"].get("domain")]
        head = own[0] if len(own) == 1 else next(iter(heads)) if len(heads) == 1 else None
    if head is None and not heads:
        return None
    if head is None or head not in heads:
        raise unknown_name("segmenter", str(head), heads, where=f"{name}: head")
    if num_classes is not None and num_classes < 2:
        raise InputError(f"num_classes is {num_classes}; a segmenter has at least two, the background among them")
    return _whole_segmenter(folder, head, heads[head], num_classes, kwargs)


def _whole_segmenter(
    folder: Path, head: str, entry: dict[str, Any], num_classes: int | None, kwargs: dict[str, Any]
) -> Segmenter:
    options = {"norm_domain": entry["dataset"], **kwargs}
    net = create_model(f"{PREFIX}{folder}", True, num_classes=0, **options)
    target, stated = target_of(entry), check_directory(folder)
    assert target is not None, "heads that answer for every voxel have a target"
    names = list(target.answers)
    count = num_classes or len(names)
    if count != len(names):
        _log.warning("%s: %d classes instead of %d: the last layer is fresh", folder, count, len(names))

    def decoder(levels: FeatureInfo) -> Head:
        return load_head(folder, head, entry, levels, stated, num_classes=num_classes)

    # The task's own decoder: on all of the net's levels, without a pyramid.
    segmenter = Segmenter(Intermediates(net), count, make_decoder=decoder, with_pyramid=False)
    if count == len(names):
        segmenter.label_names, segmenter.target = names, target
    if entry.get("window"):
        depth, height, width = entry["window"]
        segmenter.window = (depth, height, width)
    segmenter.window_overlap = entry.get("window_overlap", segmenter.window_overlap)
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


_OURS = {*Inflation().to_dict(), "input_size", "spacing_mm", "cache_dir", "norm_domain", "out_indices"}
