"""A picture of the first convolution's filters, slice by slice along D, for the model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from inflate3d.errors import InputError
from inflate3d.nn.stems import first_conv_path

_MOST_FILTERS, _ZOOM = 16, 6


def draw_filters(net: nn.Module, path: Path) -> bool:
    """Write a PNG with one row a slice along D and one column a filter; return whether there was something to draw.

    Values are scaled by each filter's own largest, so that a row of grey is a slice of zeros.
    """
    from PIL import Image

    try:
        weight: Any = net.get_submodule(first_conv_path(net)).weight
    except (InputError, AttributeError, StopIteration):
        return False
    if weight is None or weight.ndim != 5 or min(weight.shape[-2:]) < 3:
        return False
    filters_ODHWC = weight.detach().float().cpu().numpy()[:_MOST_FILTERS].transpose(0, 2, 3, 4, 1)
    if filters_ODHWC.shape[-1] != 3:
        filters_ODHWC = filters_ODHWC.mean(-1, keepdims=True).repeat(3, -1)
    largest = np.abs(filters_ODHWC).max(axis=(1, 2, 3, 4), keepdims=True)
    pixels = (127.5 + 127.5 * filters_ODHWC / np.maximum(largest, 1e-12)).astype(np.uint8)
    rows = [np.concatenate([_framed(f) for f in pixels[:, d]], axis=1) for d in range(pixels.shape[1])]
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)
    return True


def _framed(filter_HWC: np.ndarray) -> np.ndarray:
    zoomed = filter_HWC.repeat(_ZOOM, 0).repeat(_ZOOM, 1)
    return np.pad(zoomed, ((0, 2), (0, 2), (0, 0)), constant_values=255)
