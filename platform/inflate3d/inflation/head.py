"""How a net's head meets time: its pooling takes frames laid below each other, their mean, or frame by frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from inflate3d.inflation.layers import folding

_REFUSALS = (RuntimeError, ValueError, AssertionError, IndexError)


@dataclass(frozen=True)
class HeadLayout:
    """What the head of a 2D net was seen to do.

    time: "space" where it pools a map globally (frames may lie below each other, and maxima reach over time), "none"
    where it does not pool at all (global_pool=''), "mean" else. is_nhwc: its maps are channels-last. shape: of the
    features of an image, None where they are not one map or one row of tokens.
    """

    time: Literal["space", "mean", "none"] = "mean"
    is_nhwc: bool = False
    shape: tuple[int, ...] | None = None

    @classmethod
    def of(cls, net: Any, images: Tensor, features: Any = None) -> HeadLayout | None:
        """Look at the head of a 2D net; None if it has none as timm's: of feature nets some refuse forward_features.

        features: what forward_features gave for `images`, where that is known.
        """
        if not hasattr(net, "forward_features") or not hasattr(net, "forward_head"):
            return None
        if features is None:
            modes = _evaluate(net)
            try:
                with torch.no_grad():
                    features = net.forward_features(images)
            except _REFUSALS:
                return None
            finally:
                _restore(modes)
        if not isinstance(features, Tensor) or features.ndim not in (3, 4):
            return cls()
        width = getattr(net, "num_features", features.shape[1])
        is_nhwc = features.ndim == 4 and features.shape[1] != width and features.shape[-1] == width
        return cls(is_nhwc=is_nhwc, shape=tuple(features.shape[1:])).looked_at(net, net.forward_head)

    def looked_at(self, net: Any, forward_head: Callable[[Tensor], Any]) -> HeadLayout:
        """Return the layout with `time` as `forward_head`, a 2D function, shows it on random features."""
        if self.shape is None:
            return self
        features = self.draw(net)
        modes = _evaluate(net)
        try:
            with torch.no_grad(), folding(len(features)):
                return replace(self, time=self._time(forward_head, features))
        finally:
            _restore(modes)

    def draw(self, net: nn.Module) -> Tensor:
        """Return random features of two images, on the net's device; none where they have no one shape."""
        like = next(net.parameters())
        shape = (0,) if self.shape is None else (2, *self.shape)
        return torch.randn(shape, device=like.device, dtype=like.dtype)

    def _time(self, forward_head: Callable[[Tensor], Any], features: Tensor) -> Literal["space", "mean", "none"]:
        once = forward_head(features)
        if not isinstance(once, Tensor):
            return "mean"
        if once.ndim == features.ndim and once.ndim > 2 and once.shape[1:].numel() > max(once.shape[1:]):
            return "none"
        if features.ndim != 4:
            return "mean"
        try:
            twice = forward_head(torch.cat([features, features], 1 if self.is_nhwc else 2))
        except _REFUSALS:
            return "mean"
        same = once.is_meta or (once.shape == twice.shape and torch.allclose(once, twice, rtol=1e-3, atol=1e-4))
        return "space" if same else "mean"


def _evaluate(net: nn.Module) -> dict[nn.Module, bool]:
    modes = {module: module.training for module in net.modules()}
    net.eval()
    return modes


def _restore(modes: dict[nn.Module, bool]) -> None:
    for module, mode in modes.items():
        module.training = mode
