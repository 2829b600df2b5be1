"""Decoding video: exactly the frames asked for, from the key frame before them and no earlier.

The frames of a file are numbered from 0 in the order in which a decode of the whole file shows them. Packets are read
once, without decoding, and their time stamps give the numbers; the decoder then starts at the last key frame that is
needed. Pixels are as stored: rotation marks of phones are not applied.
"""

from __future__ import annotations

import io
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from inflate3d.data.samples.boxes import scaled_size
from inflate3d.errors import InputError

if TYPE_CHECKING:
    import av

Pixels = Callable[["av.VideoFrame"], np.ndarray]
Source = bytes | memoryview | str | Path
# Without this list a text file could pass for a play list, and FFmpeg would open the files and addresses in it.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,h264,hevc,gif,ivf"


@dataclass(frozen=True)
class VideoInfo:
    """What a file states: frames that a decode of all of it shows, frames a second, and pixels."""

    num_frames: int
    fps: float
    height: int
    width: int


def probe_video(source: Source) -> VideoInfo:
    """Read a video's size; InputError if it has no readable video stream. Decodes nothing where time stamps count."""
    with _opened(source) as (container, stream):
        packets = _packets(container, stream)
        count = len(packets.shown) if packets.shown else sum(1 for _ in _decoded(stream, packets.data))
        fps = stream.average_rate or stream.guessed_rate
        if not (count and fps):
            raise InputError(f"{_name(source)}: unreadable video: no frames or no frame rate")
        return VideoInfo(count, float(fps), stream.height, stream.width)


def decode_frames(source: Source, indices: Sequence[int], *, short_side: int | None = None) -> np.ndarray:
    """Return the frames with these numbers, in this order, as uint8 RGB (T, H, W, 3); numbers may repeat.

    `short_side` scales frames, by bilinear filtering, so that the shorter side has that many pixels. InputError if the
    file is unreadable or a number is beyond its frames. One thread: loaders run one process a core.
    """
    wanted = set(indices)
    if not wanted or min(wanted) < 0:
        raise InputError(f"{_name(source)}: frame numbers {list(indices)[:8]}; expected at least one, none below 0")
    with _opened(source) as (container, stream):
        packets = _packets(container, stream)
        if packets.shown and max(wanted) >= len(packets.shown):
            last = len(packets.shown) - 1
            raise InputError(f"{_name(source)}: frame {max(wanted)} asked for; it has frames 0 to {last}")
        pixels = _to_rgb(scaled_size(stream.height, stream.width, short_side))
        frames = _decode_window(stream, packets, wanted, pixels) if packets.shown else None
        if frames is None:
            stream.codec_context.flush_buffers()
            frames = _keep(enumerate(_decoded(stream, packets.data)), wanted, pixels)
    if missing := sorted(wanted - frames.keys()):
        raise InputError(f"{_name(source)}: unreadable video: frames {missing[:8]} do not decode; it may be cut short")
    return np.stack([frames[i] for i in indices])


def every_frame(source: Source) -> Iterator[av.VideoFrame]:
    """Yield the frames of a whole file in order, as FFmpeg decodes them; InputError if it is unreadable."""
    with _opened(source) as (container, stream):
        yield from _decoded(stream, _packets(container, stream).data)


# ------------------------------------------------------------------------------------------------ packets and numbers


class _Packets(NamedTuple):
    """data: in the order of decoding. shown: sorted time stamps of the frames that are shown; [] if they mislead."""

    data: list[av.Packet]
    shown: list[int]


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> _Packets:
    data = [p for p in container.demux(stream) if p.size]
    # AVI holds no presentation stamps (FFmpeg guesses them), and VP8 has packets that show nothing.
    if container.format.name == "avi" or stream.codec_context.name.startswith(("vp8", "libvpx")):
        return _Packets(data, [])
    stamps = [p.pts for p in data if not p.is_discard]
    shown = sorted(s for s in stamps if s is not None)
    return _Packets(data, shown if len(set(shown)) == len(stamps) else [])


def _decode_window(
    stream: av.VideoStream, packets: _Packets, wanted: set[int], pixels: Pixels
) -> dict[int, np.ndarray] | None:
    """Decode from the last key frame at or before the first frame; None if frames do not come as their stamps say."""
    first = packets.shown[min(wanted)]
    keys = [(i, p.pts) for i, p in enumerate(packets.data) if p.is_keyframe and p.pts is not None and p.pts <= first]
    if not keys:
        return None
    key, stamp = keys[-1]
    begin, number = bisect_left(packets.shown, stamp), {stamp: i for i, stamp in enumerate(packets.shown)}
    # Frames shown before the key frame may refer to what was not decoded.
    after = ((_number(f, number), f) for f in _decoded(stream, packets.data[key:]))
    frames = _keep(((i, f) for i, f in after if not 0 <= i < begin), wanted, pixels, in_steps_of_one=True)
    return frames if len(frames) == len(wanted) else None


def _number(frame: av.VideoFrame, number: dict[int, int]) -> int:
    return -1 if frame.pts is None else number.get(frame.pts, -1)


def _decoded(stream: av.VideoStream, packets: Sequence[av.Packet]) -> Iterator[av.VideoFrame]:
    for packet in (*packets, None):  # None: the decoder gives up the frames that it holds back
        yield from stream.codec_context.decode(packet)


def _keep(
    numbered: Iterable[tuple[int, av.VideoFrame]],
    wanted: set[int],
    pixels: Pixels,
    *,
    in_steps_of_one: bool = False,
) -> dict[int, np.ndarray]:
    """Return the pixels of the wanted frames; stops at the last one, or early where numbers jump and must not."""
    frames: dict[int, np.ndarray] = {}
    before = None
    for i, frame in numbered:
        if in_steps_of_one and before is not None and i != before + 1:
            break
        before = i
        if i in wanted:
            frames[i] = pixels(frame)
        if len(frames) == len(wanted):
            break
    return frames


@contextmanager
def _opened(source: Source) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open the stream that FFmpeg would choose; its errors become an InputError that names the source."""
    import av

    if isinstance(source, str | Path) and not Path(source).is_file():
        raise InputError(f"{source}: no such file")
    file = io.BytesIO(source) if isinstance(source, bytes | memoryview) else str(source)
    limits = {"format_whitelist": _FORMATS}
    try:
        with av.open(file, "r", container_options=limits, metadata_errors="replace") as container:
            stream = cast("av.VideoStream | None", container.streams.best("video"))
            if stream is None or stream.codec_context is None or not (stream.width and stream.height):
                raise InputError(f"{_name(source)}: unreadable video: no stream of a known codec and size")
            stream.codec_context.thread_count = 1
            yield container, stream
    except InputError:
        raise
    except (av.error.FFmpegError, ValueError, EOFError) as fault:
        raise InputError(f"{_name(source)}: unreadable video ({getattr(fault, 'strerror', fault)})") from fault


def _to_rgb(size: tuple[int, int]) -> Pixels:
    """Return what makes a frame RGB of one size. What it sets up for that serves all frames.

    One thread: with several the pixels of a scaled frame depend on how many cores there are.
    """
    from av.video.reformatter import VideoReformatter

    height, width = size
    reformat = VideoReformatter().reformat
    return lambda frame: reformat(frame, width, height, "rgb24", interpolation="BILINEAR", threads=1).to_ndarray()


def _name(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else f"video of {len(source)} bytes"
