"""Prediction of a whole volume from overlapping windows, blended by a Gaussian.

TorchIO's GridSampler and GridAggregator do the same for one Subject on the CPU, for even overlaps and images that are
not smaller than the window. This takes batches where they are, so that validation, prediction and published segmenters
share it. Where TorchIO's windows are evenly spread both agree (a test); on real volumes: docs/LOG.md, 2026-11-25.
"""

# B batch, C channels, K classes, D H W voxels.

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from inflate3d.sample import Triple


def sliding_window(
    image: Tensor, predict: Callable[[Tensor], Tensor], *, window: Triple, overlap: float = 0.5, batch_size: int = 4
) -> Tensor:
    """Return what `predict` says of windows (b, C, *window), for the whole image.

    Answers of the window's own grid, (b, K, *window), are blended into (B, K, D, H, W); of others, (b, ...), the mean
    over the windows is returned.
    Windows lie evenly from border to border and overlap by at least `overlap` of their size; near its centre a window
    counts more (a Gaussian with a standard deviation of 1/8 of the window, as nnU-Net, arXiv:1809.10486). An image
    smaller than the window is padded at the far ends, each sample's channel with its own minimum. `batch_size` windows
    go through at a time.
    """
    depth, height, width = size = image.shape[2:]
    enlarged = [max(w, s) for w, s in zip(window, size, strict=True)]
    if enlarged != list(size):
        padded = image.amin((2, 3, 4), keepdim=True).repeat(1, 1, *enlarged)
        padded[:, :, :depth, :height, :width] = image
        image = padded
    corners = window_corners(image.shape[2:], window, overlap)
    places = [(b, corner) for b in range(len(image)) for corner in corners]
    parts = [places[first : first + batch_size] for first in range(0, len(places), batch_size)]
    answers = (predict(torch.stack([_cut(image[b], corner, window) for b, corner in part])).float() for part in parts)
    like = next(answers)
    found = zip(places, itertools.chain(like, itertools.chain.from_iterable(answers)), strict=True)
    if like.shape[2:] != tuple(window):
        means = like.new_zeros((len(image), *like.shape[1:]))
        for (b, _), answer in found:
            means[b] += answer / len(corners)
        return means
    weight = gaussian_weight(window).to(image.device)
    total = like.new_zeros((len(image), like.shape[1], *image.shape[2:]))
    for (b, corner), answer in found:
        _cut(total[b], corner, window).add_(answer * weight)
    norm = torch.zeros_like(total[0, :1])
    for corner in corners:
        _cut(norm, corner, window).add_(weight)
    return (total / norm)[:, :, :depth, :height, :width]


def window_corners(size: tuple[int, ...], window: Triple, overlap: float) -> list[Triple]:
    """Return the first corner of each window: evenly spread, the outer ones touching the borders."""
    return list(itertools.product(*(starts(s, w, overlap) for s, w in zip(size, window, strict=True))))  # type: ignore[arg-type]


def gaussian_weight(window: Triple) -> Tensor:
    """Return the weight of each voxel of a window, 1 at its centre and nowhere 0: (D, H, W) float32."""
    axes = []
    for n in window:
        x = torch.arange(n, dtype=torch.float32) - (n - 1) / 2
        axes.append(torch.exp(-0.5 * (x / (n / 8)) ** 2))
    weight = axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]
    return (weight / weight.max()).clamp_min(1e-4)


def _cut(volume: Tensor, corner: Triple, window: Triple) -> Tensor:
    """Return the window of a (C, D, H, W) volume, a view."""
    (d, h, w), (depth, height, width) = corner, window
    return volume[:, d : d + depth, h : h + height, w : w + width]


def starts(size: int, window: int, overlap: float) -> list[int]:
    """Return where windows begin along one axis; torch.jit.script takes this function too, so `round` is cast."""
    step = max(window * (1 - overlap), 1)
    count = max(math.ceil((size - window) / step), 0) + 1
    return [int(round(i * (size - window) / max(count - 1, 1))) for i in range(count)]  # noqa: RUF046
