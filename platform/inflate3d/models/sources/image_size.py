"""Image sizes of 2D nets: timm's options that make a net take a size, and how a frame is fitted where none does."""

# H W: height and width of a frame; a net's reduction r is how much smaller its coarsest map is.

from __future__ import annotations

import copy
import inspect
import itertools
import logging
from typing import Any, Literal, NamedTuple

import timm
import torch
from timm.models import is_model
from torch import Tensor, nn
from torch.nn import functional as F

from inflate3d.models.sources.timm_nets import check_timm_name

_log = logging.getLogger("inflate3d")
Size = tuple[int, int]


class Fit(NamedTuple):
    """How frames come to a size that the net takes: as they are, padded at the lower right, or resized."""

    how: Literal["same", "pad", "resize"]
    size: Size

    def apply(self, x_BCDHW: Tensor) -> Tensor:
        """Bring (B, C, D, H, W) to the size; padding repeats the last row and column, resizing is bilinear."""
        if self.how == "same":
            return x_BCDHW
        if self.how == "pad":
            below, right = self.size[0] - x_BCDHW.shape[3], self.size[1] - x_BCDHW.shape[4]
            return F.pad(x_BCDHW, (0, right, 0, below, 0, 0), mode="replicate")
        return F.interpolate(x_BCDHW, (x_BCDHW.shape[2], *self.size), mode="trilinear", align_corners=False)


def fit_size(net: nn.Module, size: Size, *, reduction: int, channels: int, depth: int) -> Fit:
    """Return how a frame of `size` comes into an inflated net: the first of these that its forward bears.

    1. as it is  2. padded to a multiple of its reduction, or of 2, 3, 4 times that  3. resized to a size of its own.
    """
    candidates = itertools.chain(
        [Fit("same", size)],
        (Fit("pad", padded) for padded in _padded_sizes(size, reduction)),
        (Fit("resize", own) for own in _own_sizes(net)),
    )
    for fit in candidates:
        if takes(net, (1, channels, depth, *fit.size)):
            if fit.how != "same":
                _log.info("frames of %d x %d: %s to %d x %d for the encoder", *size, _PAST[fit.how], *fit.size)
            return fit
    return Fit("same", size)  # its own error says what is wrong


def size_options(name: str, size: Size | None, given: dict[str, Any]) -> dict[str, Any]:
    """Return what to hand to timm.create_model so that the net takes frames of `size`, or of any size for None.

    Nets that take it as they are get nothing; then timm's dynamic_img_size, strict_img_size, img_size are tried on the
    meta device. Empty too where the caller gave such an option, and for names that are not timm's.
    """
    if not is_model(name.partition(".")[0]) or any(key in given for key in _OPTIONS):
        return {}
    check_timm_name(name)
    with torch.device("meta"):
        net = timm.create_model(name, **given)
    known = {word for cls in type(net).__mro__ for word in inspect.signature(vars(cls).get("__init__", len)).parameters}
    dynamic = [dict.fromkeys([key], value) for key, value in _DYNAMIC.items() if key in known]
    if size is None:
        return dynamic[0] if dynamic else {}
    reduction = max(entry["reduction"] for entry in _levels(net)) if _levels(net) else 32
    padded = [size, *_padded_sizes(size, reduction)]
    square = [(max(p), max(p)) for p in padded]
    fixed = [{"img_size": p} for p in dict.fromkeys([*padded, *square])] if "img_size" in known else []
    tried: list[dict[str, Any]] = [{}, *dynamic, *fixed]
    for options in tried:
        sizes = [options["img_size"]] if "img_size" in options else padded
        if any(_builds_for(name, {**given, **options}, s) for s in sizes):
            return options
    return {}


def takes(net: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether `net` runs on an input of `shape`: tried without data, or with it for nets that look at their data."""
    try:
        with torch.no_grad():
            try:
                _without_data(net).eval()(torch.empty(shape, device="meta"))
            except (RuntimeError, NotImplementedError) as error:
                if "meta" not in str(error) or next(net.parameters()).is_meta:
                    raise
                copy.deepcopy(net).eval()(next(net.parameters()).new_zeros(shape))  # others may run `net` meanwhile
        return True
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError):
        return False


def _without_data(net: nn.Module) -> nn.Module:
    """Return a copy on the meta device, made without copying a weight; what it caches never reaches `net`."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in net.parameters()}
    memo.update({id(b): b.to("meta") for b in net.buffers()})
    return copy.deepcopy(net, memo)


def _builds_for(name: str, options: dict[str, Any], size: Size) -> bool:
    try:
        with torch.device("meta"):
            net = timm.create_model(name, **options, features_only=True)
    except (RuntimeError, ValueError, AssertionError, AttributeError, TypeError):
        return False
    return takes(net, (1, options.get("in_chans", 3), *size))


def _own_sizes(net: Any) -> list[Size]:
    """The size that the net was built for, and the one that timm's weights were trained on."""
    spec, cfg = getattr(net, "net_spec", None), getattr(net, "pretrained_cfg", None) or {}
    built = spec.timm_kwargs.get("img_size") if spec else None
    trained = tuple(cfg.get("input_size") or (3, 224, 224))[1:]
    return [(built, built) if isinstance(built, int) else tuple(built), trained] if built else [trained]  # type: ignore[list-item]


def _padded_sizes(size: Size, reduction: int) -> list[Size]:
    steps = [reduction * factor for factor in (1, 2, 3, 4)]
    padded = [(-(-size[0] // step) * step, -(-size[1] // step) * step) for step in steps]
    return [p for p in dict.fromkeys(padded) if p != size]


def _levels(net: Any) -> list[dict[str, Any]]:
    info = getattr(net, "feature_info", None) or []
    return list(getattr(info, "info", info))


_DYNAMIC = {"dynamic_img_size": True, "strict_img_size": False}
_OPTIONS = ("img_size", *_DYNAMIC)
_PAST = {"pad": "padded", "resize": "resized"}
