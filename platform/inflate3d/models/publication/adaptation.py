"""Published weights for a net that differs a little: other channels, another plan, fewer slices; all told."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from inflate3d.inflation.taps import center_of
from inflate3d.models.spec import NetSpec
from inflate3d.nn.stems import adapt_channels

_log = logging.getLogger("inflate3d")

_COLOURS = ", colours as in the 2D weights"


def resize_depth(weight_OIDHW: Tensor, depth: int) -> Tensor:
    """Return a kernel with another number of slices along D, and the same answer on a static clip.

    More slices: zeros around the center, which changes no answer at all. Fewer: what is cut off at an end is added to
    the slice that is now there.
    """
    own = weight_OIDHW.shape[2]
    shift = center_of(depth) - center_of(own)
    resized = weight_OIDHW.new_zeros(*weight_OIDHW.shape[:2], depth, *weight_OIDHW.shape[3:])
    index = (torch.arange(own) + shift).clamp(0, depth - 1).to(weight_OIDHW.device)
    return resized.index_add_(2, index, weight_OIDHW)


def fit_tensors(
    net: nn.Module, state: dict[str, Tensor], stem: str, told: str, colour_part: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the tensors as the net wants them, where another shape can be had soundly; the log says what was done."""
    own = net.state_dict()
    convolutions = {f"{n}.weight" for n, m in net.named_modules() if getattr(m, "tube", None) is False}
    resized: set[tuple[int, int]] = set()
    fitted = dict(state)
    for key, value in state.items():
        wanted = own[key].shape
        if key == f"{stem}.weight" and value.ndim == len(wanted) and value.shape[1] != wanted[1]:
            before, after = value.shape[1], wanted[1]
            fitted[key] = value = adapt_channels(value, after, colour_part)
            told_more = _COLOURS if colour_part is not None and (before, after) == (1, 3) else ""
            _log.warning("%s: first convolution taken from %d to %d channels%s", told, before, after, told_more)
        same = value.shape[:2] + value.shape[3:] == wanted[:2] + wanted[3:]
        if key in convolutions and value.ndim == 5 and value.shape != wanted and same:
            resized.add((value.shape[2], wanted[2]))
            fitted[key] = resize_depth(value, wanted[2])
    for before, after in sorted(resized):
        kept = "no answer changes" if after > before else "exact on static clips, to be trained further otherwise"
        _log.warning("%s: kernels of %d slices along D became %d (%s)", told, before, after, kept)
    return fitted


def describe_changes(own: NetSpec, spec: NetSpec, told: str) -> None:
    """Tell which strides along D differ from those that the weights were trained with."""
    trained, taken = own.inflation.laid.strides, spec.inflation.laid.strides
    if trained != taken:
        before, after = (" ".join(map(str, strides)) for strides in (trained, taken))
        _log.warning("%s: strides along D are %s, the weights were trained with %s", told, after, before)
