"""Videos of random groups, rates, containers, cuts and edit lists: frames and times are those of a whole decode."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
from inflate3d.data import decode_frames, probe_video
from inflate3d.errors import InputError
from nightly import draws

CODECS = {
    "mp4": ("libx264", "libx265", "mpeg4", "libvpx-vp9", "mjpeg"),
    "matroska": ("libx264", "libx265", "mpeg4", "mpeg2video", "libvpx", "ffv1"),
    "webm": ("libvpx", "libvpx-vp9"),
    "avi": ("mpeg4", "libx264", "mjpeg", "wmv2"),
    "mpegts": ("libx264", "libx265", "mpeg2video"),
    "flv": ("libx264", "flv"),
    "mov": ("prores_ks", "libx264"),
}
B_FRAMES = ("libx264", "mpeg4", "mpeg2video")
RATES = (Fraction(25), Fraction(30000, 1001), Fraction(60), Fraction(12), Fraction(24000, 1001))
FIXED_RATES = ("mpeg4", "mpeg2video", "flv", "wmv2")  # which know but some rates, or count time in their own units
H, W = 48, 64  # x265 writes beyond its memory at smaller ones


def options(codec: str, gop: int, b_frames: int, *, is_open: bool) -> dict[str, str]:
    if codec == "libx265":
        keys = f"keyint={gop}:min-keyint={gop}:bframes={b_frames}:open-gop={int(is_open)}"
        return {"x265-params": f"{keys}:b-adapt=0:log-level=none:pools=none", "preset": "ultrafast"}
    if codec == "libx264":
        more = f"open-gop={int(is_open)}:keyint={gop}:min-keyint={gop}:bframes={b_frames}:b-adapt=0"
        return {"x264-params": more, "sc_threshold": "0", "preset": "veryfast"}
    if codec in ("mjpeg", "prores_ks"):
        return {}
    return {"g": str(gop), **({"bf": str(b_frames)} if codec in B_FRAMES else {}), "threads": "1"}


def encoded(draw: np.random.Generator, container: str, codec: str) -> bytes:
    """A clip of noise that moves, so that no two frames are alike, at a constant or a variable rate."""
    count, gop, b_frames = int(draw.integers(1, 36)), int(draw.integers(1, 14)), int(draw.integers(0, 4))
    is_variable = codec not in FIXED_RATES and container != "avi" and draw.random() < 0.4
    rate = Fraction(25) if codec in FIXED_RATES else RATES[draw.integers(len(RATES))]
    tick = Fraction(1, 1000) if is_variable else 1 / rate
    steps = draw.integers(1, 400, count) if is_variable else np.ones(count, int)
    stamps = np.cumsum(steps) - steps[0] + int(draw.choice([0, 0, 7]))
    noise = draw.integers(0, 255, (count + H // 8, W // 8, 3), np.uint8).repeat(8, 1)
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        told = options(codec, gop, b_frames, is_open=draw.random() < 0.5)
        stream = file.add_stream(codec, rate=1000 if is_variable else rate, options=told)
        formats = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le"}
        stream.height, stream.width, stream.pix_fmt = H, W, formats.get(codec, "yuv420p")
        stream.codec_context.thread_count = 1
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(noise[i : i + H // 8].repeat(8, 0), format="rgb24")
            frame.pts, frame.time_base = int(stamps[i]), tick
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return out.getvalue()


def remuxed(draw: np.random.Generator, content: bytes, container: str) -> bytes:
    """The same packets without some: the first few, the last few, or one in the middle."""
    out = io.BytesIO()
    with av.open(io.BytesIO(content)) as source, av.open(out, "w", format=container) as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        most = max(1, len(packets) // 2)
        first, last, gap = draw.integers(0, most), draw.integers(0, most), draw.integers(len(packets))
        how = draw.integers(3)
        kept = [packets[first:], packets[: len(packets) - last], packets[:gap] + packets[gap + 1 :]][how]
        for packet in kept or packets:
            packet.stream = copy
            target.mux(packet)
    return out.getvalue()


def edited(draw: np.random.Generator, content: bytes) -> bytes:
    """An mp4 whose edit list shows less of it: it ends earlier, or begins later."""
    mp4 = bytearray(content)
    if (at := mp4.find(b"elst")) < 0:
        return content
    length, begin = struct.unpack(">Ii", mp4[at + 12 : at + 20])
    if draw.random() < 0.5:
        mp4[at + 12 : at + 16] = struct.pack(">I", max(1, int(length * draw.uniform(0.2, 1.0))))
    else:
        mp4[at + 16 : at + 20] = struct.pack(">i", begin + int(draw.integers(0, 4000)))
    return bytes(mp4)


def drawn(seed: int) -> bytes:
    draw = np.random.default_rng(seed)
    container = list(CODECS)[draw.integers(len(CODECS))]
    content = encoded(draw, container, CODECS[container][draw.integers(len(CODECS[container]))])
    change = draw.random()
    if change < 0.4:
        try:
            return remuxed(draw, content, container)
        except av.error.FFmpegError:  # not every container takes packets with a gap
            return content
    if change < 0.6 and container in ("mp4", "mov"):
        return edited(draw, content)
    if change < 0.7:
        return content[: len(content) - int(draw.integers(1, max(2, len(content) // 3)))]
    return content


def whole(content: bytes) -> tuple[list[np.ndarray], list[float | None], list[bool]]:
    """Every frame, its time and whether it is whole, as PyAV alone gives them."""
    with av.open(io.BytesIO(content)) as container:
        if (stream := container.streams.best("video")) is None:
            return [], [], []
        frames = list(container.decode(stream))
        pixels, times = [f.to_ndarray(format="rgb24") for f in frames], [f.time for f in frames]
    with av.open(io.BytesIO(content)) as container:
        is_cut = any(packet.is_corrupt for packet in container.demux(container.streams.best("video")))
    return pixels, times, [not f.is_corrupt and not (is_cut and f is frames[-1]) for f in frames]


def check(content: bytes, draw: np.random.Generator) -> str:
    """Compare with a whole decode; return what came of it."""
    try:
        frames, times, are_whole = whole(content)
    except av.error.FFmpegError:
        frames = []
    if not frames:
        with pytest.raises(InputError, match="unreadable video"):
            probe_video(content)
        return "refused"
    info = probe_video(content)
    assert info.num_frames == len(frames)
    assert (info.height, info.width) == frames[0].shape[:2]
    assert all(are_whole) or "damaged frames" in {fact.kind for fact in info.noticed}
    single, some = [[int(i)] for i in draw.integers(len(frames), size=4)], draw.integers(len(frames), size=5).tolist()
    for wanted in (*single, some, list(range(len(frames)))):
        for known in (info, None):
            got = decode_frames(content, wanted, info=known)
            sure = [at for at, i in enumerate(wanted) if are_whole[i]]  # FFmpeg fills in as its memory happens to be
            np.testing.assert_array_equal(got[sure], np.stack(frames)[wanted][sure])
    if all(time is not None for time in times) and all(a < b for a, b in pairwise(times)):  # type: ignore[operator]
        assert np.abs(info.seconds - (np.array(times) - times[0])).max() <= 1.1e-3  # a tick of a container in ms
        return "variable" if info.uneven else "even"
    assert info.uneven is None or (np.diff(info.uneven) > 0).all()
    return "no stamps"


@pytest.mark.parametrize("seeds", draws(300, 30))
def test_frames_and_times_are_those_of_a_whole_decode(seeds: range) -> None:
    for seed in seeds:
        assert check(drawn(seed), np.random.default_rng(seed)), seed
