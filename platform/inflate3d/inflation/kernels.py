"""Kernels with a third axis under methods written for 2D ones: memory formats that fit, rebuilds that are refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor, nn

from inflate3d.errors import InputError
from inflate3d.inflation.convolution import FoldedConv
from inflate3d.inflation.mixing import Mixin, base_name, mix

_FUSING = ("fuse", "reparameterize", "switch_to_deploy")


class Unfusable(Mixin):
    """A module whose 2D class makes one kernel of several, by arithmetic on kernels of four axes."""

    def fuse(self, *_: Any, **__: Any) -> NoReturn:
        """Raise InputError with the remedy."""
        raise InputError(
            f"{base_name(self)} cannot fuse its branches once its kernels reach over frames. Fuse the 2D net and "
            "inflate that: inflate3d.inflate(timm.utils.reparameterize_model(net_2d), example_size=(D, H, W))"
        )

    reparameterize = switch_to_deploy = fuse


class FixedPatches(Mixin):
    """A patch embed whose kernel is a tube of frames."""

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """As timm's for the image's size; InputError for another patch size."""
        own = super().set_input_size  # type: ignore[misc]
        given = inspect.signature(own).bind(*args, **kwargs).arguments.get("patch_size")
        sizes = {(given, given) if isinstance(given, int) else given and tuple(given)}
        if not sizes <= {None, tuple(self.patch_size)}:  # type: ignore[attr-defined]
            raise InputError(
                f"set_input_size(patch_size={given!r}): the patch kernel of an inflated net is a tube of frames and "
                "keeps its size. Build the net with it: create_model(name, patch_size=...)"
            )
        own(*args, **kwargs)


def keep_kernels(net: nn.Module) -> None:
    """Let the modules of an inflated net that hold its kernels refuse what their 2D classes would do to them."""
    for module in list(net.modules()):
        if module is net or not any(isinstance(m, FoldedConv) for m in module.modules()):
            continue
        if any(callable(getattr(type(module), name, None)) for name in _FUSING):
            mix(module, Unfusable)
        if hasattr(module, "set_input_size") and hasattr(module, "patch_size"):
            mix(module, FixedPatches)


def of_any_rank(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return `change` so that channels_last changes kernels of five axes too, and channels_last_3d those of four."""

    def changed(x: Tensor) -> Tensor:
        try:
            return change(x)
        except RuntimeError as error:
            if "required rank" not in str(error):
                raise
        if x.ndim == 5:
            return change(x.flatten(2, 3)).unflatten(2, x.shape[2:4])
        return change(x.unsqueeze(2)).squeeze(2)

    return changed
