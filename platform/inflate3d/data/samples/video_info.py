"""What a video shows: its frames, their times, and where decoding may start; found by decoding all of it once.

A container's claims (packets, rates, key frames, sizes) are not trusted. A key frame is a start if decoding from there
gives the same pixels as decoding from the first packet: that is tried for each of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from inflate3d.data.raw.noticed import Noticed
from inflate3d.data.samples.frame_times import FrameTimes, frame_times
from inflate3d.data.samples.frames import (
    Source,
    Start,
    decoded,
    every_frame,
    is_cover,
    mark,
    name_of,
    opened,
    packet_of,
    packets,
)
from inflate3d.data.samples.record import is_list, is_number, is_whole
from inflate3d.data.samples.turns import TURNS, UPRIGHT, Turn, display_matrix, turn_of
from inflate3d.errors import InputError

if TYPE_CHECKING:
    import av


@dataclass(frozen=True)
class VideoInfo:
    """The frames that a decode of all of a file shows, and pixels as they are stored (0: not known, of old records).

    fps: frames a second, the mean where they are uneven. uneven: seconds of each frame from the first; None where they
    are even, at i / fps. pixel_aspect: width over height. turn: how stored frames are turned when they are shown.
    starts: (packet, frame) beside the first packet, see `frames.Start`. noticed: what is no error.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    uneven: tuple[float, ...] | None = None
    pixel_aspect: Fraction = Fraction(1)
    turn: Turn = UPRIGHT
    starts: tuple[Start, ...] = field(default=(), compare=False)
    noticed: tuple[Noticed, ...] = field(default=(), compare=False)

    @property
    def seconds(self) -> np.ndarray:
        """When each frame is shown, (num_frames,) float64 from the first."""
        return np.arange(self.num_frames) / self.fps if self.uneven is None else np.array(self.uneven)

    def step_seconds(self, frames: Sequence[int], interval: int) -> float:
        """Return the mean time from a clip's frame to the next one that is `interval` further; repeats aside."""
        first, last = min(frames), max(frames)
        if self.uneven is None or first == last:
            return interval / self.fps
        return interval * (self.uneven[last] - self.uneven[first]) / (last - first)

    def to_record(self) -> dict[str, Any]:
        """Return what a sample's JSON member says of it."""
        record = {"shape": [3, self.num_frames, self.height, self.width], "num_frames": self.num_frames}
        told = {"fps": self.fps, "spacing_mm": [1.0 / self.fps, 1.0, 1.0], "affine": None}
        noticed = [list(fact) for fact in self.noticed]
        turn = None if self.turn == UPRIGHT else list(self.turn)
        optional = {"seconds": self.uneven, "turn": turn, "starts": self.starts, "noticed": noticed}
        return {**record, **told, **{name: value for name, value in optional.items() if value}}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> VideoInfo:
        """Read what `to_record` wrote; those of shards that were built before lack seconds, starts and turn.

        InputError for values that make no sense, since shards may be anyone's.
        """
        named = ("num_frames", "fps", "shape", "seconds", "starts")
        frames, fps, shape, seconds, starts = (cast(Any, record.get(name)) for name in named)
        if not is_whole(frames, 1, 2**31) or not is_number(fps) or not 0 < fps < 1e6:
            raise InputError(f"num_frames is {frames!r} and fps {fps!r}; expected numbers above 0")
        starts = [] if starts is None else starts
        if (shape is not None or starts) and not (is_list(shape, 4) and all(is_whole(n, 1, 2**16) for n in shape[2:])):
            raise InputError(f"shape is {str(shape)[:80]}; expected [3, frames, height, width]")
        if seconds is not None and not (_rises(seconds, (frames,))):
            raise InputError(f"seconds is {str(seconds)[:80]}; expected a rising time for each of {frames} frames")
        if not isinstance(starts, list) or (starts and not _rises(starts, (len(starts), 2), kinds="i")):
            raise InputError(f"starts is {str(starts)[:80]}; expected pairs of packet and frame that rise")
        turn = next((each for each in TURNS if list(each) == record.get("turn", [*UPRIGHT])), None)
        if turn is None:
            raise InputError(f"turn is {str(record['turn'])[:80]}; expected one of {[list(each) for each in TURNS]}")
        uneven = None if seconds is None else tuple(seconds)
        pairs = tuple((packet, frame) for packet, frame in starts)
        height, width = (0, 0) if shape is None else shape[2:]
        return cls(frames, float(fps), height, width, uneven, turn=turn, starts=pairs)


def probe_video(source: Source) -> VideoInfo:
    """Decode all of a video and return what it shows; InputError if a packet of it does not decode, or none shows.

    What was last found for bytes is kept, since a build asks twice of each video.
    """
    return _probed_bytes(source) if isinstance(source, bytes) else _probed(source)


def _probed(source: Source) -> VideoInfo:
    with opened(source) as (container, stream):
        fed = list(packets(container, stream))
        shown = _decode_all(stream, fed, name_of(source))
        claims = _Claims.of(container, stream, shown[0])
        times = frame_times(
            [frame.pts for frame in shown],
            [packet.dts for packet in fed],
            tick=stream.time_base or Fraction(1),
            stated=claims.rates,
        )
        starts = _proved_starts(stream, fed, shown)
    first = shown[0]
    size = first.height, first.width
    turn = turn_of(first.matrix) or UPRIGHT
    info = VideoInfo(len(shown), times.fps, *size, times.seconds, claims.pixel_aspect, turn, starts)
    told = (*_noticed(info, shown, len(fed), times, claims), *_unmoved(source, shown))
    return VideoInfo(**{**vars(info), "noticed": told})


_probed_bytes = lru_cache(maxsize=1)(_probed)


@dataclass(frozen=True)
class _Shown:
    """One frame of a decode of the whole: its packet's number, and what tells its pixels from others."""

    packet: int | None
    pts: int | None
    pixels: int
    height: int
    width: int
    matrix: tuple[int, ...] | None
    is_interlaced: bool
    is_corrupt: bool

    @classmethod
    def of(cls, frame: av.VideoFrame, fed: Sequence[av.Packet]) -> _Shown:
        size, matrix = (frame.height, frame.width), display_matrix(frame)
        number = packet_of(frame)
        is_corrupt = frame.is_corrupt or (number is not None and fed[number].is_corrupt)
        return cls(number, frame.pts, _hash(frame), *size, matrix, frame.interlaced_frame, is_corrupt)


@dataclass(frozen=True)
class _Claims:
    """What the container says of a stream. seconds: where it ends; 0 where that is not said of this stream alone."""

    rates: tuple[Fraction | None, ...]
    frames: int
    first_second: float
    seconds: Fraction
    pixel_aspect: Fraction
    videos: int
    codec: str

    @classmethod
    def of(cls, container: av.container.InputContainer, stream: av.VideoStream, first: _Shown) -> _Claims:
        rates, tick = (stream.average_rate, stream.guessed_rate), stream.time_base or Fraction(0)
        seconds = (stream.duration or 0) * tick
        if not seconds and len(container.streams) == 1:
            seconds = Fraction(container.duration or 0, 1_000_000)
        videos = sum(not is_cover(each) for each in container.streams.video)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        begin = float(max(0, first.pts or 0) * tick)
        return cls(rates, stream.frames, begin, seconds, aspect, videos, stream.codec_context.name)


def _decode_all(stream: av.VideoStream, fed: Sequence[av.Packet], name: str) -> list[_Shown]:
    import av

    shown: list[_Shown] = []
    for i, packet in enumerate((*fed, None)):
        if packet is not None:
            mark(packet, i)
        try:
            shown += [_Shown.of(frame, fed) for frame in decoded(stream, packet)]
        except av.error.FFmpegError as fault:
            raise InputError(
                f"{name}: unreadable video: packet {i} of {len(fed)} does not decode ({fault.strerror}), after "
                f"{len(shown)} frames; it is damaged, or begins in the middle. Mend it: ffmpeg -i IN OUT"
            ) from fault
    if not shown:
        raise InputError(f"{name}: unreadable video: none of its {len(fed)} packets shows a frame")
    return shown


def _proved_starts(stream: av.VideoStream, fed: Sequence[av.Packet], shown: Sequence[_Shown]) -> tuple[Start, ...]:
    """Return the key frames from which a decode gives the same pixels, up to the next of them."""
    uses = Counter(frame.packet for frame in shown)
    starts: list[Start] = []
    for number, packet in enumerate(frame.packet for frame in shown):
        if packet and fed[packet].is_keyframe and uses[packet] == 1 and (not starts or packet > starts[-1][0]):
            starts.append((packet, number))
    for _ in range(3):  # where one does not hold, the one before it must reach further
        ends = [*(number for _, number in starts), len(shown)][1:]
        held = [start for start, end in zip(starts, ends, strict=True) if _holds(stream, fed, shown, start, end)]
        if held == starts:
            return tuple(starts)
        starts = held
    return ()


def _holds(stream: av.VideoStream, fed: Sequence[av.Packet], shown: Sequence[_Shown], start: Start, end: int) -> bool:
    import av

    stream.codec_context.flush_buffers()
    packet, number = start
    has_begun = False
    try:
        for each in (*fed[packet:], None):
            for frame in decoded(stream, each):
                has_begun = has_begun or packet_of(frame) == packet
                if has_begun and _hash(frame) != shown[number].pixels:
                    return False
                number += has_begun
                if number == end:
                    return True
    except av.error.FFmpegError:
        return False
    return False


def _hash(frame: av.VideoFrame) -> int:
    """Return a hash of a frame's pixels, as stored where that is fast."""
    from xxhash import xxh3_64_intdigest

    as_stored = frame.format.name in ("yuv420p", "yuvj420p") and frame.width % 2 == frame.height % 2 == 0
    pixels = frame.to_ndarray() if as_stored else frame.to_ndarray(format="rgb24")
    return xxh3_64_intdigest(np.ascontiguousarray(pixels).data)


def _rises(values: Any, shape: tuple[int, ...], kinds: str = "if") -> bool:
    """Whether a JSON value is an array of finite numbers of this shape that rise along its first axis."""
    try:
        array = np.array(values)
    except ValueError:
        return False
    is_numbers = array.shape == shape and array.dtype.kind in kinds and bool(np.isfinite(array).all())
    return is_numbers and bool((np.diff(array, axis=0) > 0).all() and (array >= 0).all())


# ------------------------------------------------------------------------------------------------- what is noticed


def _noticed(
    info: VideoInfo, shown: Sequence[_Shown], fed: int, times: FrameTimes, claims: _Claims
) -> Iterator[Noticed]:
    """Yield what is no error, but that a person should know of a video."""
    stored, matrix = max(fed, claims.frames), shown[0].matrix
    if matrix is not None:
        a, b, _, c, d, *_ = matrix
        how = f"{'mirrored and ' if a * d - b * c < 0 else ''}turned by {round(math.degrees(math.atan2(b, a))) % 360}"
        done = "so frames are" if turn_of(matrix) else "only multiples of 90 are, so frames stay as stored"
        yield Noticed("rotated", f"to be shown {how} degrees clockwise; {done}")
    if other := sum(frame.matrix != matrix for frame in shown):
        yield Noticed("rotation changes", f"{other} of {len(shown)} frames are to be turned otherwise than the first")
    if info.pixel_aspect != 1:
        yield Noticed("pixel aspect", f"pixels are {info.pixel_aspect} times as wide as high; they stay as stored")
    if info.uneven is not None:
        steps = np.diff(info.uneven)
        yield Noticed("variable rate", f"from {steps.min():.4g} to {steps.max():.4g} s between frames")
    if times.note:
        yield Noticed("no times", f"{times.note}; they are taken as even, {info.fps:.6g} a second")
    if info.num_frames < stored and claims.codec not in ("vp8", "libvpx"):  # which has packets that show nothing
        yield Noticed("frames not shown", f"{info.num_frames} of {stored} stored frames are shown: cut or incomplete")
    end = claims.first_second + float(info.seconds[-1]) + 1 / info.fps
    if end < 0.9 * claims.seconds and claims.seconds - end > 2 / info.fps:
        yield Noticed("cut short", f"it states {float(claims.seconds):.4g} s; its frames end at {end:.4g} s")
    if other := sum((frame.height, frame.width) != (info.height, info.width) for frame in shown):
        yield Noticed("size changes", f"{other} of {info.num_frames} frames are not {info.width}x{info.height}")
    if corrupt := sum(frame.is_corrupt for frame in shown):
        yield Noticed("damaged frames", f"{corrupt} of {info.num_frames} frames are guessed by the decoder")
    if interlaced := sum(frame.is_interlaced for frame in shown):
        yield Noticed("interlaced", f"{interlaced} of {info.num_frames} frames are two half pictures of unlike times")
    if claims.videos > 1:
        yield Noticed("several videos", f"one of {claims.videos} streams of pictures is taken")


def _unmoved(source: Source, shown: Sequence[_Shown]) -> Iterator[Noticed]:
    """Yield whether all frames are one picture, or even one colour."""
    if len({frame.pixels for frame in shown}) > 1:
        return
    first = next(every_frame(source)).to_ndarray(format="rgb24")
    if (first == first[0, 0]).all():
        yield Noticed("constant", f"every pixel of its {len(shown)} frames is {first[0, 0].tolist()}")
    elif len(shown) > 1:
        yield Noticed("still", f"its {len(shown)} frames are one picture")
