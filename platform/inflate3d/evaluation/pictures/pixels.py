"""A plane of an image and of its mask as pixels: intensities stretched, a colour a class."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps

OPACITY = 0.55


def stretch(plane: np.ndarray, *, like: np.ndarray | None = None) -> np.ndarray:
    """Return intensities as 0 to 1, from the 0.5 to the 99.5 percentile: its own, or those of `like`."""
    low, high = np.percentile(plane if like is None else like, [0.5, 99.5])
    scaled: np.ndarray = np.clip((plane - low) / max(high - low, 1e-6), 0, 1)
    return scaled


def tint(labels: np.ndarray) -> np.ndarray:
    """Return (..., 4) for labels (...): a colour a class, the background transparent."""
    colours = [(*colormaps["tab10"](k % 10)[:3], OPACITY) for k in range(1, labels.max() + 1)]
    return np.array([(0, 0, 0, 0), *colours])[labels]
