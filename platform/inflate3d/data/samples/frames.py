"""Decoding video: the frames with the numbers asked for, bit for bit as a decode of the whole file shows them.

Frames are numbered from 0 in the order in which a decode of the whole file shows them. What a container says of its
packets is not trusted: a decode begins at the first packet, or at one of `VideoInfo.starts`, which a decode of the
whole has proved (`video_info.py`). Frames are turned as players show them
(`turns.py`); pixel aspect is noticed, not applied.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from inflate3d.data.samples.boxes import scaled_size
from inflate3d.data.samples.turns import UPRIGHT, Turn, display_matrix, turn_of, turned
from inflate3d.errors import InputError

if TYPE_CHECKING:
    import av

    from inflate3d.data.samples.video_info import VideoInfo

Pixels = Callable[["av.VideoFrame"], np.ndarray]
Source = bytes | memoryview | str | Path
Start = tuple[int, int]
"""(packet, frame): the packet's own frame has that number, and what comes after it is what the whole file shows."""
# Without this list a text file could pass for a play list, and FFmpeg would open the files and addresses in it.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,h264,hevc,gif,ivf"


def decode_frames(
    source: Source, indices: Sequence[int], *, short_side: int | None = None, info: VideoInfo | None = None
) -> np.ndarray:
    """Return the frames with these numbers, in this order, as uint8 RGB (T, H, W, 3); numbers may repeat.

    info: what `probe_video` said of this file, or a shard's record: only what lies between a proved start and the
    frames is decoded. Without it all is decoded from the first packet on. `short_side` scales frames, by bilinear
    filtering, so that the shorter side has that many pixels. All frames get the size and turn of the first.
    InputError if the file is unreadable or a number is beyond its frames. One thread: loaders run one process a core.
    """
    wanted = set(indices)
    if not wanted or min(wanted) < 0:
        raise InputError(f"{name_of(source)}: frame numbers {list(indices)[:8]}; expected at least one, none below 0")
    if info is not None and max(wanted) >= info.num_frames:
        last = info.num_frames - 1
        raise InputError(f"{name_of(source)}: frame {max(wanted)} asked for; it has frames 0 to {last}")
    size = (info.height, info.width) if info is not None and info.starts else None
    found: dict[int, np.ndarray] = {}
    for starts in [info.starts, ()] if info is not None and info.starts else [()]:
        found = _pixels(source, wanted, starts, size, short_side, None if info is None else info.turn)
        if len(found) == len(wanted):
            return np.stack([found[i] for i in indices])
    missing = sorted(wanted - found.keys())
    raise InputError(f"{name_of(source)}: unreadable video: frames {missing[:8]} do not decode; it may be cut short")


def _pixels(
    source: Source,
    wanted: set[int],
    starts: Sequence[Start],
    size: tuple[int, int] | None,
    short_side: int | None,
    turn: Turn | None,
) -> dict[int, np.ndarray]:
    """Return the wanted frames as RGB, turned (None: as the first); fewer where they do not come from these starts."""
    found: dict[int, np.ndarray] = {}
    to_rgb: Pixels | None = None
    with opened(source) as (container, stream):
        for number, frame in _numbered(container, stream, starts, wanted):
            to_rgb = to_rgb or _to_rgb(scaled_size(*(size or (frame.height, frame.width)), short_side))
            turn = turn or turn_of(display_matrix(frame)) or UPRIGHT
            if number in wanted:
                found[number] = turned(to_rgb(frame), turn)
            if len(found) == len(wanted):
                break
    return found


def _numbered(
    container: av.container.InputContainer, stream: av.VideoStream, starts: Sequence[Start], wanted: set[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (number, frame), rising, with all that are wanted among them; what no wanted frame needs is jumped over."""
    left, starts = sorted(wanted, reverse=True), [(0, 0), *(start for start in starts if start[0] > 0)]
    begin, number = _start_of(left[-1], starts)
    has_fed, anchor = False, begin
    for i, packet in enumerate(chain(packets(container, stream), (None,))):
        if i < begin:
            continue
        if packet is not None:
            if i == begin and i > 0:
                if not packet.is_keyframe:
                    return  # another FFmpeg takes the file apart in another way
                if has_fed:
                    stream.codec_context.flush_buffers()
            has_fed = True
            mark(packet, i)
        for frame in decoded(stream, packet):
            if anchor > 0 and packet_of(frame) != anchor:
                continue  # shown before the start's own frame: it may need what was jumped over
            anchor = 0
            yield number, frame
            number += 1
        while left and left[-1] < number:
            left.pop()
        if left and (start := _start_of(left[-1], starts))[0] > i + 1:
            begin, number = start
            anchor = begin


def _start_of(number: int, starts: Sequence[Start]) -> Start:
    return starts[bisect_right(starts, number, key=lambda start: start[1]) - 1]


def packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """Yield what a decoder is fed, in order; an empty packet would end it."""
    return (packet for packet in container.demux(stream) if packet.size)


def mark(packet: av.Packet, number: int) -> None:
    """Number a packet, so that the frame that it gives can be told."""
    packet.opaque = (number,)  # a new object: PyAV keeps it by its address, and forgets all of one address at once


def packet_of(frame: av.VideoFrame) -> int | None:
    """Return the number of the packet that gave a frame; None if the decoder does not tell."""
    number: Any = frame.opaque
    return None if number is None else number[0]


def decoded(stream: av.VideoStream, packet: av.Packet | None) -> list[av.VideoFrame]:
    """Return what the decoder gives after a packet; after None, what it holds back."""
    return stream.codec_context.decode(packet)


def every_frame(source: Source) -> Iterator[av.VideoFrame]:
    """Yield the frames of a whole file in order, as FFmpeg decodes them; InputError if it is unreadable."""
    with opened(source) as (container, stream):
        for packet in (*packets(container, stream), None):
            yield from decoded(stream, packet)


@contextmanager
def opened(source: Source) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file at its video; FFmpeg's errors become an InputError that names the source."""
    import av

    if isinstance(source, str | Path) and not Path(source).is_file():
        raise InputError(f"{source}: no such file")
    file = io.BytesIO(source) if isinstance(source, bytes | memoryview) else str(source)
    limits = {"format_whitelist": _FORMATS}
    try:
        with av.open(file, "r", container_options=limits, metadata_errors="replace") as container:
            stream = _video_stream(container, name_of(source))
            stream.codec_context.thread_count = 1
            stream.codec_context.copy_opaque = True
            yield container, stream
    except InputError:
        raise
    except (av.error.FFmpegError, ValueError, EOFError) as fault:
        raise InputError(f"{name_of(source)}: unreadable video ({getattr(fault, 'strerror', fault)})") from fault


def _video_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """Return the stream that FFmpeg would choose, were there no cover pictures."""
    best = cast("av.VideoStream | None", container.streams.best("video"))
    moving = [s for s in container.streams.video if not is_cover(s)]
    stream = best if best in moving or not moving else moving[0]
    if stream is None or is_cover(stream):
        held = ", ".join(s.type for s in container.streams if not is_cover(s)) or "no stream"
        cover = "" if stream is None else " and a cover picture"
        raise InputError(f"{name}: unreadable video: it holds {held}{cover}, and no video")
    if stream.codec_context is None or not (stream.width and stream.height):
        raise InputError(f"{name}: unreadable video: no stream of a known codec and size")
    return stream


def is_cover(stream: av.stream.Stream) -> bool:
    """Whether a stream is one picture beside the others, such as an album's cover."""
    import av

    return bool(stream.disposition & (av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails))


def _to_rgb(size: tuple[int, int]) -> Pixels:
    """Return what makes a frame RGB of one size. What it sets up for that serves all frames.

    One thread: with several the pixels of a scaled frame depend on how many cores there are.
    """
    from av.video.reformatter import VideoReformatter

    height, width = size
    reformat = VideoReformatter().reformat
    return lambda frame: reformat(frame, width, height, "rgb24", interpolation="BILINEAR", threads=1).to_ndarray()


def name_of(source: Source) -> str:
    """Return what messages call a source."""
    return str(source) if isinstance(source, str | Path) else f"video of {len(source)} bytes"
