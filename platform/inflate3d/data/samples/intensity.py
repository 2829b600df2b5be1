"""Stored voxel values become the floats that a net sees, as the dataset's card says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inflate3d.contracts import Intensity
from inflate3d.errors import InputError

if TYPE_CHECKING:  # chunks need the train extra; create_transform needs this module in the light core
    from inflate3d.data.samples.chunked import ChunkedArray


class Normalise:
    """clip -> scale * x + offset, per channel; the whole volume decides where the card says "zscore"."""

    def __init__(self, intensity: Intensity, num_channels: int, *, where: str) -> None:
        """Check the card's values. Raises InputError if mean or std do not fit the channels or a scale would be 0."""
        low, high = intensity.window
        if intensity.mode == "window" and not low < high:
            raise InputError(f"{where}: intensity.window is {intensity.window}; expected (low, high) with low < high")
        self.mode, self.window = intensity.mode, (low, high)
        self.mean = _per_channel("mean", intensity.mean, num_channels, where)
        self.std = _per_channel("std", intensity.std, num_channels, where)
        if (self.std <= 0).any():
            raise InputError(f"{where}: intensity.std is {intensity.std}; every value must be above 0")

    def __call__(
        self,
        part_CDHW: np.ndarray,
        *,
        whole_CDHW: np.ndarray | ChunkedArray | None = None,
        out_CDHW: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return `part` normalised, float32, in `out` or in memory of its own.

        Statistics come from `whole` (default: the part). An `out` of another shape is left alone.
        """
        if out_CDHW is not None and out_CDHW.shape != part_CDHW.shape:
            out_CDHW = None
        if part_CDHW.dtype.kind == "f" and not np.isfinite(part_CDHW).all():
            raise InputError("holds voxels that are NaN or infinite")
        if self.mode == "window":
            low, high = self.window
            if part_CDHW.dtype != np.uint8 or low > 0 or high < 255:  # else nothing lies outside
                part_CDHW = np.clip(part_CDHW, np.float32(low), np.float32(high), dtype=np.float32)
            scale, offset = 1 / ((high - low) * self.std), -low / ((high - low) * self.std) - self.mean / self.std
        else:
            mean, std = _moments(part_CDHW if whole_CDHW is None else whole_CDHW)
            scale = 1 / np.where(std > 0, std, 1.0)  # a constant channel becomes 0
            offset = -mean * scale
        # One pass over memory for the type and the scale together.
        scale_C111 = scale.reshape(-1, 1, 1, 1).astype(np.float32)
        out = np.multiply(part_CDHW, scale_C111, out=out_CDHW, dtype=np.float32)
        out += offset.reshape(-1, 1, 1, 1).astype(np.float32)
        return out


def _moments(whole_CDHW: np.ndarray | ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(whole_CDHW, np.ndarray):
        return whole_CDHW.moments()
    flat = whole_CDHW.reshape(len(whole_CDHW), -1)
    return flat.mean(1, dtype=np.float64), flat.std(1, dtype=np.float64)


def _per_channel(name: str, values: tuple[float, ...], num_channels: int, where: str) -> np.ndarray:
    if len(values) not in (1, num_channels):
        raise InputError(
            f"{where}: intensity.{name} has {len(values)} values for {num_channels} channels; give 1 or all"
        )
    return np.broadcast_to(np.asarray(values, np.float64), num_channels)
