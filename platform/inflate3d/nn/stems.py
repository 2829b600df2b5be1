"""Stems: one first convolution for each kind of input, all adapted from the RGB one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from inflate3d.errors import InputError
from inflate3d.inflation.layers import FoldedLayer
from inflate3d.nn.domain import Domain

COLOUR_PART = "colour_part"
"""Name of the buffer, and of the attribute of a net that a publication gave one."""


class StemSwitch(nn.ModuleDict):
    """Stands where the net's first convolution stood, and runs the stem of the active domain.

    In training every stem takes part in every batch, with weight 0, so that all ranks see the same parameters.
    colour_part: what the net's own stem told apart between colours (see colour_part_of), where no stem here has three
    channels; it is not trained, and goes along in checkpoints and publications, so that clips find it again.
    """

    stem_of_index: list[str]
    domain: Domain
    colour_part: Tensor | None

    @classmethod
    def install(
        cls,
        net: nn.Module,
        channels: Mapping[str, int],
        stem_of: Mapping[str, str],
        domain: Domain,
        *,
        colour_part: Tensor | None = None,
    ) -> StemSwitch:
        """Replace the first convolution of `net` by a switch over stems with these input channels."""
        path = first_conv_path(net)
        own = net.get_submodule(path)
        switch = cls({name: adapted_stem(own, count, colour_part) for name, count in channels.items()})
        switch.register_buffer(COLOUR_PART, None if 3 in channels.values() else colour_part)
        switch.stem_of_index, switch.domain = list(stem_of.values()), domain
        switch.path = path  # type: ignore[assignment]
        net.set_submodule(path, switch)
        # The switch checks channels, stem by stem.
        del net.in_chans_expected
        return switch

    @property
    def active(self) -> str:
        """The stem that serves the active domain."""
        return self.stem_of_index[self.domain.index]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Take the colour part of the checkpoint, or none from an older one."""
        part = state_dict.get(prefix + COLOUR_PART)
        device = next(self.parameters()).device
        self.register_buffer(COLOUR_PART, None if part is None else part.detach().clone().to(device))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Run the active stem: (N, C, H, W) -> (N', O, H', W')."""
        stem = self[self.active]
        if x.shape[1] != stem_channels(stem):
            raise InputError(
                f"input has {x.shape[1]} channels, but stem {self.active!r} takes {stem_channels(stem)}; "
                f"set model.backbone.stems.{self.active} to the channels of its datasets"
            )
        y = stem(x)
        if self.training and len(self) > 1:
            for name, other in self.items():
                if name != self.active:
                    y = y + 0 * other(_minimal_input(other, x)).sum()
        return y


def first_conv_path(net: nn.Module) -> str:
    """Return the name of the first convolution: timm's own word for it, else the first in order."""
    named = (getattr(net, "pretrained_cfg", None) or {}).get("first_conv")
    if isinstance(named, str) and isinstance(net.get_submodule(named), nn.Conv2d):
        return named
    if isinstance(named, list | tuple):
        raise InputError(
            f"{type(net).__name__} has several first convolutions {list(named)}; leave model.backbone.stems out"
        )
    return next(n for n, m in net.named_modules() if isinstance(m, nn.Conv2d))


def adapted_stem(stem: nn.Module, in_chans: int, colour_part: Tensor | None = None) -> nn.Module:
    """Return a copy of a (folded) stem for another number of channels, as adapt_channels has it."""
    fresh = copy.copy(stem)
    fresh._parameters, fresh._buffers = dict(stem._parameters), dict(stem._buffers)
    weight: Tensor = stem.weight.detach()  # type: ignore[assignment, union-attr, operator]
    fresh.weight = nn.Parameter(adapt_channels(weight, in_chans, colour_part).clone())
    if fresh._parameters.get("bias") is not None:
        fresh.bias = nn.Parameter(stem.bias.detach().clone())  # type: ignore[union-attr, operator]
    fresh.in_channels = in_chans  # type: ignore[assignment]
    return fresh


def adapt_channels(weight: Tensor, in_chans: int, colour_part: Tensor | None = None) -> Tensor:
    """Return a first kernel (O, I, [D,] H, W) for another number of channels, by timm's rule from RGB.

    From another number than three, channels are summed for one, else repeated in turn and scaled to the same sum. A
    kernel of grey becomes one of RGB with a colour part (O, 3, [D,] H, W), if given: grey clips are answered as before.
    """
    channels = weight.shape[1]
    if channels == in_chans:
        return weight
    if channels == 3:
        # timm's rule is for 4-D kernels, so the depth is laid beside the height.
        middle = weight.shape[2:-1]
        return adapt_input_conv(in_chans, weight.flatten(2, -2)).unflatten(2, middle)
    if in_chans == 1:
        return weight.sum(1, keepdim=True)
    if channels == 1 and in_chans == 3 and colour_part is not None:
        part = colour_part.to(weight)
        return weight / 3 + part - part.mean(1, keepdim=True)  # 0 in sum, also once it was rounded to halves
    return weight[:, torch.arange(in_chans, device=weight.device) % channels] * (channels / in_chans)


def colour_part_of(weight: Tensor) -> Tensor | None:
    """Return what a first kernel of RGB says beside grey: (O, 3, [D,] H, W), 0 in sum over channels; else None."""
    return (weight - weight.mean(1, keepdim=True)).detach() if weight.shape[1] == 3 else None


def stem_channels(stem: Any) -> int:
    """Return the channels that a stem's input has; tubes bring those of all their frames."""
    return int(stem.in_channels) * (stem.depth_kernel if getattr(stem, "tube", False) else 1)


def _minimal_input(stem: Any, like: Tensor) -> Tensor:
    """One frame a clip, as small as the kernel."""
    clips = stem.clip().batch_size if isinstance(stem, FoldedLayer) else 1
    height, width = stem.kernel_size
    return torch.zeros(clips, stem_channels(stem), height, width, device=like.device, dtype=like.dtype)
