"""Which voxels and frames of a volume or video are taken: boxes that may reach beyond, and the frames of a clip."""

# C channel, D H W voxels along z y x.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from inflate3d.sample import Triple

if TYPE_CHECKING:
    from inflate3d.data.samples.chunked import ChunkedArray


def frame_indices(total: int, num_frames: int, interval: int, draw: np.random.Generator | None) -> list[int]:
    """Return the frames of a clip: it starts anywhere (`draw`) or is centred; past the end the last frame repeats."""
    room = max(0, total - ((num_frames - 1) * interval + 1))
    first = room // 2 if draw is None else int(draw.integers(room + 1))
    return [min(first + i * interval, total - 1) for i in range(num_frames)]


def cut(array: np.ndarray | ChunkedArray, start: Triple, size: Triple, *, fill: float | None) -> np.ndarray:
    """Return the box of `size` voxels at `start` of (D, H, W) or (C, D, H, W); it may reach beyond on every side.

    What lies beyond is `fill`, or each channel's own minimum where that is None. A view where nothing lies beyond.
    """
    spans = list(zip(start, size, array.shape[-3:], strict=True))
    d, h, w = (slice(max(s, 0), min(s + n, end)) for s, n, end in spans)
    part = array[..., d, h, w]
    if part.shape[-3:] == tuple(size):
        return part
    box = np.empty((*array.shape[:-3], *size), array.dtype)
    box[...] = array.min(axis=(-3, -2, -1), keepdims=True) if fill is None else fill
    d, h, w = (slice(max(s, 0) - s, min(s + n, end) - s) for s, n, end in spans)
    box[..., d, h, w] = part
    return box


def at_least(shape: tuple[int, ...], size: Triple) -> Triple:
    """Return a shape, enlarged to at least `size` along each axis."""
    d, h, w = (max(n, least) for n, least in zip(shape, size, strict=True))
    return (d, h, w)


def centre(shape: tuple[int, ...], size: tuple[int, ...]) -> Any:
    """Return where a box begins that is centred; negative where the box is larger."""
    return tuple((n - want) // 2 for n, want in zip(shape, size, strict=True))


def random_start(shape: tuple[int, ...], size: tuple[int, ...], draw: np.random.Generator, *, holds: Any = None) -> Any:
    """Return where a box begins that lies anywhere inside (and holds a voxel); centred where the box is larger."""
    start = []
    for axis, (n, want) in enumerate(zip(shape, size, strict=True)):
        low, high = 0, n - want
        if high < 0:
            start.append(high // 2)
            continue
        if holds is not None:
            low, high = max(low, int(holds[axis]) - want + 1), min(high, int(holds[axis]))
        start.append(int(draw.integers(low, high + 1)))
    return tuple(start)


def scaled_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Return (H, W) of frames whose shorter side is brought to `short_side`; one size for all that a stream shows."""
    scale = 1.0 if short_side is None else short_side / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))
