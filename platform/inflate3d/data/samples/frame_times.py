"""When the frames of a video are shown: by their stamps, or evenly where the stamps are of no use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from inflate3d.errors import InputError

_MOST_FPS = 1_000_000


@dataclass(frozen=True)
class FrameTimes:
    """fps: frames a second, the mean where they are uneven. seconds: of each frame from the first; None: i / fps.

    note: why the stamps were not used; "" where they were.
    """

    fps: float
    seconds: tuple[float, ...] | None = None
    note: str = ""


def frame_times(
    pts: Sequence[int | None], dts: Sequence[int | None], *, tick: Fraction, stated: Iterable[Fraction | None]
) -> FrameTimes:
    """Return when the frames are shown, from stamps in units of `tick` seconds.

    1. pts of the frames in the order of showing, where all are there and rise  2. dts of the packets, where there is
    one for each frame and they rise (AVI has no others)  3. even steps at the first rate that the file states. Stamps
    that lie within a tick and an eighth of a step of even steps, at a stated rate or at the mean, are even: containers
    round them. InputError where neither stamps nor a stated rate are there.
    """
    rates = [rate for rate in stated if rate and 0 < rate < _MOST_FPS]
    stamps = next((known for each in (pts, dts) if (known := _rising(each, len(pts)))), None)
    if len(pts) == 1 or stamps is None:
        if not rates:
            raise InputError("unreadable video: no times of frames and no frame rate")
        note = "" if len(pts) == 1 else f"the stamps of its {len(pts)} frames are missing, repeated or out of order"
        return FrameTimes(float(rates[0]), note=note)
    mean = (len(stamps) - 1) / ((stamps[-1] - stamps[0]) * tick)
    for rate in [*rates, mean]:
        step = 1 / (rate * tick)
        most = min(Fraction(1), step / 8)
        if all(abs(stamp - stamps[0] - i * step) <= most for i, stamp in enumerate(stamps)):
            return FrameTimes(float(rate))
    return FrameTimes(float(mean), tuple(float((stamp - stamps[0]) * tick) for stamp in stamps))


def _rising(stamps: Sequence[int | None], count: int) -> list[int] | None:
    """Return the stamps if there are `count` of them and each is above the one before it."""
    known = [stamp for stamp in stamps if stamp is not None]
    rises = all(a < b for a, b in pairwise(known))
    return known if rises and len(known) == len(stamps) == count else None
