"""What a net costs a voxel: its strides, the bytes that it saves for backward, the seconds of a step."""

# B batch, C channel, D H W voxels along z y x

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from inflate3d.errors import InputError
from inflate3d.models import create_model
from inflate3d.models.publication.index import is_published
from inflate3d.models.segmenter import Intermediates, Segmenter
from inflate3d.sample import Spacing, Triple

MOST_PROBED = 32  # voxels along an axis
_LARGE = 2**16  # voxels of the larger of two probes, at least, so that a step's overhead does not pass for its work
_SHALLOW = 16  # the output_stride that most of timm's convolutional nets offer
_TIMED = 3
_BATCH = 2  # one value a channel would be too few for BatchNorm


@dataclass(frozen=True)
class NetCost:
    """stride: (D, H, W) input voxels to one of the deepest map. in_chans: what its own stem takes. bytes_per_voxel,
    seconds_per_voxel: of a training step, for each voxel of each sample; overhead_s: of a step, whatever its size.
    plan: of the net along D. timm_kwargs: what the 2D net was built with.
    """

    stride: Triple
    in_chans: int
    parameters: int
    bytes_per_voxel: float
    seconds_per_voxel: float
    overhead_s: float
    plan: Mapping[str, Any]
    timm_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def step_s(self, voxels: float) -> float:
        """Return the seconds of a training step on so many voxels of all samples together."""
        return self.overhead_s + self.seconds_per_voxel * voxels

    def voxels_in(self, seconds: float) -> float:
        """Return how many voxels a step of so many seconds may hold; below 0 where not even its overhead fits."""
        return (seconds - self.overhead_s) / self.seconds_per_voxel


def measure_fitting_net(name: str, *, size: Triple, spacing_mm: Spacing | None, num_classes: int | None) -> NetCost:
    """Return what the net costs; a 2D net whose deepest map would be one voxel high or wide is cut at /16 if it can be.

    One voxel a sample is too few for BatchNorm (docs/LOG.md, 2026-11-23). nnU-Net's nets end at four or more.
    """
    options: dict[str, Any] = {"size": size, "spacing_mm": spacing_mm, "num_classes": num_classes}
    cost = measure_net(name, **options)
    if is_published(name) or min(size[1:]) >= 2 * cost.stride[1] or cost.stride[1] <= _SHALLOW:
        return cost
    try:
        return measure_net(name, timm_kwargs={"output_stride": _SHALLOW}, **options)
    except (TypeError, InputError, RuntimeError):  # each family refuses in its own way
        return cost


def measure_net(
    name: str,
    *,
    size: Triple,
    spacing_mm: Spacing | None,
    num_classes: int | None,
    timm_kwargs: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> NetCost:
    """Run a few training steps of the net on random samples and return what they cost.

    size: of the data (D, H, W); it and spacing_mm lay the net along D, and a sample takes at most 32 voxels an axis.
    num_classes: of a decoder; None for a net that answers for a whole sample.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    options: dict[str, Any] = {"input_size": size, "spacing_mm": None if is_published(name) else spacing_mm}
    given = dict(timm_kwargs or {})
    net = create_model(name, is_published(name), num_classes=0, **options, **given)
    if not hasattr(net, "forward_intermediates"):
        raise InputError(f"--model {name!r} gives no intermediate maps, which the heads need: platform models list")
    own: Any = net
    stride: Triple = own.feature_info.reduction_dhw()[-1]
    model = Segmenter(Intermediates(net), num_classes, with_pyramid=False) if num_classes else net
    model = model.to(place).train()
    probe = [max(min(n, MOST_PROBED), s) for n, s in zip(size, stride, strict=True)]
    batches = (_BATCH, max(2 * _BATCH, _LARGE // prod(probe)))
    small, large = (torch.randn(n, own.in_chans_expected, *probe, device=place) for n in batches)
    saved, _ = _step(model, large)
    # The best of some, since the machine may be shared.
    less_s, more_s = (min(_step(model, x)[1] for _ in range(_TIMED)) for x in (small, large))
    voxels = [n * prod(probe) for n in batches]
    per_voxel = max((more_s - less_s) / (voxels[1] - voxels[0]), more_s / voxels[1] / 4)
    parameters = sum(p.numel() for p in model.parameters())
    overhead_s = max(0.0, more_s - per_voxel * voxels[1])
    plan = own.plan.to_dict()
    return NetCost(stride, own.in_chans_expected, parameters, saved / voxels[1], per_voxel, overhead_s, plan, given)


def _step(model: nn.Module, x_BCDHW: Tensor) -> tuple[int, float]:
    """Run forward and backward; return the bytes saved in between, whole storages once each, and the seconds."""
    started = time.perf_counter()
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        answer = model(x_BCDHW)
    saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    answer.float().square().mean().backward()
    if x_BCDHW.is_cuda:
        torch.cuda.synchronize()
    return saved, time.perf_counter() - started


def memory_at_hand() -> int:
    """Return the free bytes of the GPU, or of this machine where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # Linux: what can be had without swapping
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
