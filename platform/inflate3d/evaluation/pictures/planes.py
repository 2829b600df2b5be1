"""A plane of an image in a row of a figure: its pixels, and a line below."""

# C channel, H W pixels.

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from inflate3d.evaluation.pictures.pixels import stretch

COLUMNS = 6
"""Planes in a row."""


def show_plane(axes: Axes, plane: np.ndarray, aspect: float = 1.0, *, like: np.ndarray | None = None) -> None:
    """Show a frame (C, H, W) or a plane of a volume, its intensities stretched: its own, or as those of `like`."""
    scaled = stretch(plane, like=like)
    if plane.ndim == 3:  # (C, H, W) frames stand upright; rows of a volume grow upwards
        axes.imshow(scaled.transpose(1, 2, 0))
    else:
        axes.imshow(scaled, cmap="gray", origin="lower", aspect=aspect)


def caption(axes: Axes, text: str) -> None:
    """Write a line below a plane."""
    axes.text(0.5, -0.02, text, transform=axes.transAxes, fontsize=6, ha="center", va="top", color="dimgray")
