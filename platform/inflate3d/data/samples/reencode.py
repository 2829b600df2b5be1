"""Re-encoding of video while shards are built: h264 with a key frame every few frames, perhaps smaller.

Any clip then costs at most one short run of frames to reach. The frames are those of a decode of the whole file, at
their times, and what the file says of rotation and pixel aspect stays. Measured in docs/data.md.
"""

from __future__ import annotations

import io
from contextlib import suppress
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from inflate3d.data.samples.frames import every_frame
from inflate3d.data.samples.turns import display_matrix
from inflate3d.data.samples.video_info import VideoInfo, probe_video
from inflate3d.errors import InputError, unknown_name

if TYPE_CHECKING:
    import av

SUFFIX = "mp4"
_TICK = Fraction(1, 1_000_000)  # seconds, of uneven times
_COLOUR = ("color_range", "colorspace", "color_primaries", "color_trc")


@dataclass(frozen=True)
class VideoEncoding:
    """gop: a key frame every so many frames. short_side: pixels, never enlarged; None keeps the size. crf: x264's."""

    gop: int = 12
    short_side: int | None = None
    crf: int = 18

    def __post_init__(self) -> None:
        for name, value, low, high in (("gop", self.gop, 1, 1000), ("crf", self.crf, 0, 51)):
            if not low <= value <= high:
                raise InputError(f"video_{name} is {value}; allowed: {low} to {high}")
        if self.short_side is not None and not 16 <= self.short_side <= 8192:
            raise InputError(f"video_short_side is {self.short_side}; allowed: 16 to 8192 pixels")

    @classmethod
    def from_dict(cls, values: Any, *, where: str) -> VideoEncoding:
        """Read one from a config's mapping; InputError names an unknown key or a wrong value."""
        names = [f.name for f in fields(cls)]
        if not isinstance(values, dict):
            raise InputError(f"{where} is {values!r}; expected keys: {', '.join(names)}")
        for key, value in values.items():
            if key not in names:
                raise unknown_name("key", str(key), names, where=f"{where}.{key}")
            if not isinstance(value, int) and (key, value) != ("short_side", None):
                raise InputError(f"{where}.{key} is {value!r}; expected a whole number")
        return cls(**values)


def reencode(source: bytes, encoding: VideoEncoding) -> bytes:
    """Return an mp4 of the same frames. The same bytes give the same bytes. InputError if they are no whole video."""
    import av

    info = probe_video(source)
    size = _size(info.height, info.width, encoding.short_side)
    out = io.BytesIO()
    with av.open(out, "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        writer: _Writer | None = None
        count = 0
        for frame in every_frame(source):
            writer = writer or _Writer(container, info, size, encoding, frame)
            writer.add(frame, count)
            count += 1
        if writer is None or count != info.num_frames:
            raise InputError(f"unreadable video: {count} of {info.num_frames} frames decode; it may be cut short")
        writer.finish()
    return out.getvalue()


class _Writer:
    """The stream of one output file; of the first frame it takes what RGB is made by."""

    def __init__(
        self, container: Any, info: VideoInfo, size: tuple[int, int], encoding: VideoEncoding, first: av.VideoFrame
    ) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        if "libx264" not in av.codecs_available:
            raise InputError("this build of FFmpeg has no x264, which re-encoding needs; leave --video_gop out")
        rate = Fraction(info.fps).limit_denominator(100_000)
        tick = 1 / rate if info.uneven is None else _TICK
        self.stamps = None if info.uneven is None else [round(second / _TICK) for second in info.uneven]
        self.stream = container.add_stream("libx264", rate=rate, options=_options(encoding))
        self.stream.height, self.stream.width = size
        self.stream.pix_fmt = "yuv420p"
        context = self.stream.codec_context
        context.gop_size, context.thread_count, context.time_base = encoding.gop, 1, tick
        self.stream.time_base = tick
        if info.pixel_aspect != 1:
            context.sample_aspect_ratio = info.pixel_aspect * Fraction(info.width * size[0], info.height * size[1])
        if (matrix := display_matrix(first)) is not None:
            self.stream.set_display_matrix(matrix)
        for name in _COLOUR:
            with suppress(AttributeError, ValueError):
                setattr(context, name, getattr(first, name))
        self.container, self.size = container, size
        self.reformat = VideoReformatter().reformat

    def add(self, frame: av.VideoFrame, number: int) -> None:
        height, width = self.size
        # One thread: with several the pixels depend on how many cores there are.
        scaled = self.reformat(frame, width, height, format="yuv420p", interpolation="BICUBIC", threads=1)
        scaled.pts = number if self.stamps is None else self.stamps[number]
        scaled.time_base = self.stream.codec_context.time_base
        scaled.pict_type = 0  # the encoder chooses; the old file's key frames are not kept
        self.container.mux(self.stream.encode(scaled))

    def finish(self) -> None:
        self.container.mux(self.stream.encode())


def _options(encoding: VideoEncoding) -> dict[str, str]:
    """What x264 is told.

    No B-frames and closed groups: a frame needs only what stands before it, back to its key frame. cpu-independent:
    else the bytes depend on the instructions that a CPU has, and with AVX-512 now and then on what memory held before.
    """
    return {
        "preset": "veryfast",
        "crf": str(encoding.crf),
        "bf": "0",
        "sc_threshold": "0",
        "flags": "+cgop+bitexact",
        "x264-params": "cpu-independent=1",
    }


def _size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Return the even (H, W) of the output: h264 stores colour at half the resolution."""
    scale = min(1.0, short_side / min(height, width)) if short_side else 1.0
    return max(2, 2 * round(height * scale / 2)), max(2, 2 * round(width * scale / 2))
