"""Videos for tests, whose frames carry their own number, and what is shown of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np
from inflate3d.data import decode_frames, probe_video

H, W = 48, 96
X264 = {"g": "12", "bf": "0", "sc_threshold": "0"}
OPEN = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=2:b-adapt=0", "sc_threshold": "0"}
Keep = Callable[[int, Any], bool]


def picture(i: int, size: tuple[int, int] = (H, W)) -> np.ndarray:
    """A frame that carries its number in 12 black or white columns."""
    bits = np.array([(i >> bit) & 1 for bit in range(12)], np.uint8) * 220 + 16
    row = np.repeat(bits, size[1] // 12)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (size[0], size[1], 3)))


def number(rgb: np.ndarray) -> int:
    w = rgb.shape[1] / 12
    return sum(int(rgb[:, int((b + 0.25) * w) : int((b + 0.75) * w)].mean() > 127) << b for b in range(12))


def clip(
    codec: str = "libx264",
    container: str = "matroska",
    *,
    frames: int = 36,
    options: dict[str, str] | None = None,
    stamps_ms: list[int] | None = None,
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (H, W),
    rotation: int = 0,
    mirrored: bool = False,
    aspect: Fraction | None = None,
) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(
            codec, rate=25 if stamps_ms is None else 1000, options=X264 if options is None else options
        )
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.thread_count = 1
        if rotation or mirrored:
            stream.set_display_rotation(rotation, hflip=mirrored)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i, size), format="rgb24")
            frame.pts, frame.time_base = (
                (i, Fraction(1, 25)) if stamps_ms is None else (stamps_ms[i], Fraction(1, 1000))
            )
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return out.getvalue()


def remuxed(content: bytes, container: str, keep: Keep = lambda i, p: True) -> bytes:
    """The packets that are kept; a packet may be changed by `keep`."""
    out = io.BytesIO()
    with av.open(io.BytesIO(content)) as source, av.open(out, "w", format=container) as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for i, packet in enumerate(p for p in source.demux(stream) if p.size):
            if keep(i, packet):
                packet.stream = copy
                target.mux(packet)
    return out.getvalue()


def whole(content: bytes) -> list[int]:
    with av.open(io.BytesIO(content)) as container:
        return [number(f.to_ndarray(format="rgb24")) for f in container.decode(container.streams.best("video"))]


def shown(content: bytes) -> list[int]:
    """The frames' numbers, each asked for alone and all at once, with the starts and without."""
    info = probe_video(content)
    alone = [number(decode_frames(content, [i], info=info)[0]) for i in range(info.num_frames)]
    for known in (info, None):
        assert [number(f) for f in decode_frames(content, range(info.num_frames), info=known)] == alone
    return alone


def kinds(content: bytes) -> set[str]:
    return {fact.kind for fact in probe_video(content).noticed}


def key_frame(content: bytes, which: int) -> int:
    with av.open(io.BytesIO(content)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    return [i for i, p in enumerate(packets) if p.is_keyframe][which]


VARIABLE = [int(t) for t in np.cumsum(np.random.default_rng(0).choice([17, 33, 100, 500], 20))]
