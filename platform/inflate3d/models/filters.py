"""The filters of a first convolution over depth, as pixels: for the model card and for `platform plot filters`."""

# O filters, I input channels, D slices, H W height and width of a kernel.

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from inflate3d.errors import InputError
from inflate3d.nn.stems import first_conv_path

_GAP, _WIDTH = 2, 18  # white pixels between filters, and about how many a filter is wide


def first_filters(net: nn.Module) -> np.ndarray | None:
    """Return the first convolution's kernel (O, I, D, H, W); None where there is none that shows anything."""
    try:
        module = net.get_submodule(first_conv_path(net))
    except (InputError, AttributeError, StopIteration):
        return None
    return filters_of(module)


def filters_of(convolution: nn.Module) -> np.ndarray | None:
    """Return a convolution's kernel (O, I, D, H, W) as float32; None for 2D, 1x1 and 2x2 kernels."""
    weight: Any = getattr(convolution, "weight", None)
    if weight is None or weight.ndim != 5 or min(weight.shape[-2:]) < 3:
        return None
    return weight.detach().float().cpu().numpy()


def slice_grids(filters_OIDHW: np.ndarray) -> np.ndarray:
    """Return one picture a slice, each with all filters in the same grid: (D, height, width, 3), uint8.

    Three input channels are shown as red, green and blue, other counts by their mean. All slices share one scale, the
    kernel's largest absolute value, with 0 as mid grey: a grey slice holds zeros.
    """
    pixels = filters_OIDHW.transpose(2, 0, 3, 4, 1)  # (D, O, H, W, I)
    if pixels.shape[-1] != 3:
        pixels = pixels.mean(-1, keepdims=True).repeat(3, -1)
    pixels = (127.5 + 127.5 * pixels / max(np.abs(pixels).max(), 1e-12)).round().astype(np.uint8)
    zoom = max(1, round(_WIDTH / pixels.shape[3]))
    pixels = pixels.repeat(zoom, 2).repeat(zoom, 3)
    pixels = np.pad(pixels, ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
    depth, count, height, width, _ = pixels.shape
    columns = math.ceil(math.sqrt(2 * count)) if count <= 64 else math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    missing = rows * columns - count
    pixels = np.pad(pixels, ((0, 0), (0, missing), (0, 0), (0, 0), (0, 0)), constant_values=255)
    grid = pixels.reshape(depth, rows, columns, height, width, 3).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(depth, rows * height, columns * width, 3)


def draw_filters(net: nn.Module, path: Path) -> bool:
    """Write a PNG of the first filters, slices side by side along D; return whether there was something to draw."""
    from PIL import Image

    filters = first_filters(net)
    if filters is None:
        return False
    grids = np.pad(slice_grids(filters), ((0, 0), (_GAP, 0), (4 * _GAP, 0), (0, 0)), constant_values=255)
    Image.fromarray(np.concatenate(list(grids), axis=1)).save(path)
    return True
