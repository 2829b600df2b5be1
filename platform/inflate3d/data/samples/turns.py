"""How the frames of a video are turned when they are shown, as its display matrix says."""

# H W pixels down and to the right, C channel.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    import av

Turn = tuple[int, int, int, int]
"""(a, b, c, d): the pixel at (x, y) is shown at (a x + c y, b x + d y), with y downwards, moved into the picture."""
UPRIGHT: Turn = (1, 0, 0, 1)
_ONE = 65536  # in the matrix's fixed point
TURNS: tuple[Turn, ...] = tuple(turn for x in (1, -1) for y in (1, -1) for turn in ((x, 0, 0, y), (0, y, x, 0)))
"""By 0, 90, 180 and 270 degrees, mirrored and not."""


def display_matrix(frame: av.VideoFrame) -> tuple[int, ...] | None:
    """Return how a frame is to be turned when it is shown, as FFmpeg's nine numbers; None: not at all."""
    from av.sidedata.sidedata import Type

    data = cast(Any, frame.side_data).get(Type.DISPLAYMATRIX)
    matrix = None if data is None else tuple(np.frombuffer(bytes(data), "<i4").tolist())
    return None if matrix is None or matrix[:5] == (_ONE, 0, 0, 0, _ONE) else matrix


def turn_of(matrix: tuple[int, ...] | None) -> Turn | None:
    """Return the turn of a display matrix (ISO/IEC 14496-12 6.2.2); None where it is none of TURNS."""
    if matrix is None:
        return UPRIGHT
    a, b, _, c, d, *_ = matrix
    return next((t for t in TURNS if tuple(_ONE * v for v in t) == (a, b, c, d)), None)


def turned(frame_HWC: np.ndarray, turn: Turn) -> np.ndarray:
    """Return a stored frame as it is shown, (H', W', C), without a copy."""
    a, b, c, d = turn
    return (frame_HWC if a else frame_HWC.swapaxes(0, 1))[:: b + d, :: a + c]
