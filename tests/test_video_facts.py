"""Videos as cameras, recorders and editors leave them: each frame shown once, at its time, and what is odd is said."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from inflate3d.contracts import RawSample
from inflate3d.data import decode_frames, probe_video
from inflate3d.data.raw.videos import read_video_case
from inflate3d.data.samples.frame_times import frame_times
from inflate3d.data.samples.reencode import VideoEncoding, reencode
from inflate3d.data.samples.video_info import VideoInfo
from inflate3d.data.samples.views import make_stage
from inflate3d.data.shards.members import decode_members, encode_sample
from inflate3d.datasets.video_folder import VideoFolder
from inflate3d.errors import InputError

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


# ------------------------------------------------------------------------------------------ which frames there are


def test_a_recording_that_begins_inside_a_group_shows_what_can_be_decoded() -> None:
    content = remuxed(clip(frames=48), "mpegts", lambda i, p: i >= 5)
    assert shown(content) == list(range(12, 48))
    assert "frames not shown" in kinds(content)


@pytest.mark.parametrize("container", ["matroska", "mp4", "mpegts"])
@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("mpeg2video", {"g": "12", "bf": "2"}),
        ("libx265", {"x265-params": "keyint=12:min-keyint=12:bframes=2:open-gop=1:b-adapt=0:log-level=none"}),
        ("libx264", OPEN),
    ],
)
def test_leading_frames_of_an_open_group_that_refer_to_what_was_cut_are_not_counted(
    codec: str, options: dict[str, str], container: str
) -> None:
    source = clip(codec, frames=40, options=options)
    begin = key_frame(source, 1)
    content = remuxed(source, container, lambda i, p: i >= begin)
    if (codec, container) == ("libx264", "mpegts"):  # no decoder finds its parameters
        with pytest.raises(InputError, match="unreadable video"):
            probe_video(content)
        return
    assert shown(content) == whole(content)
    assert shown(content)[-1] == 39


@pytest.mark.parametrize("b_frames", ["0", "2"])
@pytest.mark.parametrize("kept", [30, 31, 1])
def test_an_edit_list_that_ends_early_counts_no_frame_behind_it(b_frames: str, kept: int) -> None:
    mp4 = bytearray(clip(container="mp4", frames=48, options={**X264, "bf": b_frames}))
    at = mp4.find(b"elst") + 12
    mp4[at : at + 4] = struct.pack(">I", struct.unpack(">I", mp4[at : at + 4])[0] * kept // 48)
    assert shown(bytes(mp4)) == list(range(kept))
    assert "frames not shown" in kinds(bytes(mp4))


@pytest.mark.parametrize("gap", [3, 12, 13, 20])
def test_a_packet_that_is_missing_in_the_middle_moves_no_number(gap: int) -> None:
    content = remuxed(clip(), "matroska", lambda i, p: i != gap)
    assert shown(content) == whole(content)


def test_a_lie_about_key_frames_is_found_out() -> None:
    """Every packet is marked as a key frame: decoding from most of them would give grey or smeared frames."""

    def mark(_: int, packet: Any) -> bool:
        packet.is_keyframe = True
        return True

    for codec in ("mpeg4", "libx264"):
        content = remuxed(clip(codec), "matroska", mark)
        assert shown(content) == list(range(36))
        assert len(probe_video(content).starts) <= 3


def test_a_damaged_packet_is_refused_or_said() -> None:
    def hurt(i: int, packet: Any) -> bool:
        if i == 7:
            packet.update(bytes(packet.size))
        return True

    with pytest.raises(InputError, match=r"packet 7 of \d+ does not decode .* after \d+ frames; it is damaged"):
        probe_video(remuxed(clip("libvpx-vp9", frames=12, options={"g": "12"}), "webm", hurt))


@pytest.mark.parametrize("container", ["mpegts", "matroska"])
def test_frames_of_another_size_come_in_the_size_of_the_first(container: str) -> None:
    parts = clip(container="h264", frames=24), clip(container="h264", frames=24, size=(72, 144))
    out = io.BytesIO()
    with av.open(out, "w", format=container) as target:
        stream, count = None, 0
        for part in parts:
            with av.open(io.BytesIO(part), format="h264") as source:
                stream = stream or target.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(source.streams.video[0]):
                    if packet.size:
                        packet.pts = packet.dts = count * 3600
                        packet.time_base, packet.stream, count = Fraction(1, 90000), stream, count + 1
                        target.mux(packet)
    content = out.getvalue()
    assert shown(content) == [*range(24), *range(24)]
    info = probe_video(content)
    assert (info.height, info.width) == (H, W)
    assert decode_frames(content, [0, 30], info=info).shape == (2, H, W, 3)
    assert "size changes" in kinds(content)


def with_cover(*, has_video: bool) -> bytes:
    """A file with a cover picture as its first stream of pictures."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        cover = file.add_stream("mjpeg", rate=25)
        cover.height, cover.width, cover.pix_fmt = 480, 640, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        film = file.add_stream("libx264", rate=25, options=X264) if has_video else None
        if film is not None:
            film.height, film.width, film.pix_fmt = H, W, "yuv420p"
        sound = file.add_stream("aac", rate=8000)
        for i in range(6):
            if i == 0:
                file.mux(cover.encode(av.VideoFrame.from_ndarray(picture(0, (480, 636)), format="rgb24").reformat(640)))
            if film is not None:
                frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 25)
                file.mux(film.encode(frame))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts = 8000, 0
        file.mux(sound.encode(silence))
        for stream in (cover, *([film] if film else []), sound):
            file.mux(stream.encode())
    return out.getvalue()


def test_a_cover_picture_is_no_video() -> None:
    info = probe_video(with_cover(has_video=True))
    assert (info.num_frames, info.height, info.width) == (6, H, W)
    assert [number(f) for f in decode_frames(with_cover(has_video=True), range(6), info=info)] == list(range(6))
    with pytest.raises(InputError, match="unreadable video: it holds audio and a cover picture, and no video"):
        probe_video(with_cover(has_video=False))


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "container"),
    [
        *(("libx264", name, "mp4") for name in ("gray", "yuv444p", "yuv422p10le")),
        *(("ffv1", name, "matroska") for name in ("gray16le", "yuv411p", "bgra", "yuva420p")),
        *(("mjpeg", "yuvj422p", "avi"), ("prores_ks", "yuv422p10le", "mov"), ("png", "rgb24", "mov")),
        *(("libvpx-vp9", "yuva420p", "webm"), ("rawvideo", "yuv420p", "avi"), ("mpeg2video", "yuv420p", "mpeg")),
    ],
)
def test_pixels_of_any_format_are_those_of_a_whole_decode(codec: str, pix_fmt: str, container: str) -> None:
    content = clip(codec, container, frames=8, pix_fmt=pix_fmt, options={})
    with av.open(io.BytesIO(content)) as file:
        expected = np.stack([f.to_ndarray(format="rgb24") for f in file.decode(file.streams.best("video"))])
    np.testing.assert_array_equal(decode_frames(content, range(8), info=probe_video(content)), expected)


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize(("space", "kr", "kb"), [(1, 0.2126, 0.0722), (5, 0.299, 0.114), (9, 0.2627, 0.0593)])
def test_colours_follow_the_space_and_range_that_the_file_states(
    space: int, kr: float, kb: float, is_full: bool
) -> None:
    """The matrix of ITU-R BT.709, BT.601 and BT.2020, written out."""
    y, u, v = 120, 90, 180
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as file:
        stream = file.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuv444p"
        planes = np.broadcast_to(np.array([y, u, v], np.uint8)[:, None, None], (3, 16, 16))
        for target in (
            stream.codec_context,
            frame := av.VideoFrame.from_ndarray(np.ascontiguousarray(planes), "yuv444p"),
        ):
            target.colorspace, target.color_range = space, 2 if is_full else 1
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    luma = y / 255 if is_full else (y - 16) / 219
    blue, red = ((c - 128) / (255 if is_full else 224) for c in (u, v))
    r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
    expected = np.array([r, (luma - kr * r - kb * b) / (1 - kr - kb), b]) * 255
    assert np.abs(decode_frames(out.getvalue(), [0])[0, 8, 8] - expected).max() <= 1
    again = reencode(out.getvalue(), VideoEncoding(4, crf=0))
    assert np.abs(decode_frames(again, [0])[0, 8, 8] - expected).max() <= 4


# ------------------------------------------------------------------------------------------------- when they are shown

VARIABLE = [int(t) for t in np.cumsum(np.random.default_rng(0).choice([17, 33, 100, 500], 20))]


@pytest.mark.parametrize("container", ["matroska", "mp4", "webm", "mpegts", "flv"])
def test_a_variable_rate_gives_true_times_and_the_mean(container: str) -> None:
    codec = "libvpx-vp9" if container == "webm" else "libx264"
    options = {"g": "12"} if container == "webm" else {**X264, "bf": "2"}
    content = clip(codec, container, frames=20, stamps_ms=VARIABLE, options=options)
    info = probe_video(content)
    assert np.allclose(info.seconds, (np.array(VARIABLE) - VARIABLE[0]) / 1000, atol=1e-9)
    assert info.fps == pytest.approx(19 / (VARIABLE[-1] - VARIABLE[0]) * 1000)
    assert shown(content) == list(range(20))
    assert kinds(content) == {"variable rate"}


@pytest.mark.parametrize("first_ms", [0, 40, 2_000_000])
def test_an_even_rate_is_even_whatever_the_container_claims(first_ms: int) -> None:
    content = clip(frames=20, stamps_ms=[first_ms + 40 * i for i in range(20)])  # it claims 1000 frames a second
    info = probe_video(content)
    assert (info.fps, info.uneven, info.noticed) == (25.0, None, ())


def test_a_clip_has_the_mean_seconds_between_its_own_frames() -> None:
    info = VideoInfo(6, 2.0, H, W, uneven=(0.0, 1.0, 2.0, 2.25, 2.5, 2.75))
    assert info.step_seconds([0, 1, 2], 1) == 1.0
    assert info.step_seconds([1, 3, 5], 2) == pytest.approx(1.75 / 2)
    assert info.step_seconds([4, 5, 5, 5], 1) == 0.25  # past the end the last frame repeats
    assert info.step_seconds([5, 5], 2) == 1.0
    assert replace(info, uneven=None).step_seconds([1, 3, 5], 2) == 1.0


def test_a_stage_gives_the_clips_own_seconds() -> None:
    content = clip(frames=20, stamps_ms=VARIABLE)
    card = replace(VideoFolder.base_card, name="a")
    members: Any = decode_members(encode_sample(RawSample(video=content, video_suffix="mkv"), card, key="a"))
    sample = make_stage(card, {"num_frames": 4, "crop_size": 16, "short_side": 16}, training=False)("a", members, 0)
    assert sample.spacing_mm[0] == pytest.approx((VARIABLE[11] - VARIABLE[8]) / 3000)


@pytest.mark.parametrize(
    ("pts", "dts", "tick", "stated", "fps", "seconds"),
    [
        ([0, 1, 2], [0, 1, 2], Fraction(1, 25), [Fraction(25)], 25.0, None),
        ([0, 33, 67, 100], [], Fraction(1, 1000), [Fraction(30000, 1001)], 30000 / 1001, None),  # rounded to ms
        ([0, 33, 67, 100], [], Fraction(1, 1000), [Fraction(1000)], 30.0, None),  # the claim does not fit
        ([0, 1, 3, 4], [], Fraction(1, 25), [Fraction(25)], 18.75, (0, 0.04, 0.12, 0.16)),  # one is missing
        ([5, 2, 9], [7, 8, 10], Fraction(1, 10), [Fraction(10)], 20 / 3, (0, 0.1, 0.3)),  # AVI: only dts rise
        ([None, None], [4, 5], Fraction(1, 10), [None], 10.0, None),
        ([0], [0], Fraction(1, 10), [Fraction(12)], 12.0, None),
    ],
)
def test_times_are_taken_from_what_rises(
    pts: list[int | None], dts: list[int | None], tick: Fraction, stated: list[Any], fps: float, seconds: Any
) -> None:
    found = frame_times(pts, dts, tick=tick, stated=stated)
    assert found.fps == pytest.approx(fps)
    assert found.seconds == (None if seconds is None else pytest.approx(seconds))
    assert found.note == ""


def test_stamps_of_no_use_are_said_and_no_rate_is_refused() -> None:
    for pts in ([0, 0, 0], [0, 2, 1], [None, 1, 2]):
        found = frame_times(pts, [], tick=Fraction(1, 10), stated=[None, Fraction(5)])
        assert (found.fps, found.seconds) == (5.0, None)
        assert "missing, repeated or out of order" in found.note
        with pytest.raises(InputError, match="no times of frames and no frame rate"):
            frame_times(pts, [], tick=Fraction(1, 10), stated=[None, Fraction(0)])


def test_packets_without_stamps_keep_their_frames_and_are_said() -> None:
    """Of a raw stream FFmpeg knows no time at all."""
    content = clip(container="h264", frames=24)
    assert shown(content) == list(range(24))
    assert probe_video(content).fps == 25.0


# ------------------------------------------------------------------------------------------------------ what is said


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize(("rotation", "clockwise"), [(90, 270), (180, 180), (270, 90)])
def test_rotation_is_said_and_pixels_stay(container: str, rotation: int, clockwise: int) -> None:
    content = clip(container=container, frames=6, rotation=rotation)
    (fact,) = probe_video(content).noticed
    assert (fact.kind, f"turned by {clockwise} degrees clockwise" in fact.text) == ("rotated", True)
    assert shown(content) == list(range(6))


def test_a_mirrored_video_is_said() -> None:
    (fact,) = probe_video(clip(container="mp4", frames=3, mirrored=True)).noticed
    assert fact.text.startswith("to be shown mirrored and turned by")


def test_pixel_aspect_interlacing_and_cuts_are_said(tmp_path: Path) -> None:
    assert "pixels are 4/3 times as wide" in probe_video(clip(frames=6, aspect=Fraction(4, 3))).noticed[0].text
    assert kinds(clip(frames=6, options={"flags": "+ildct+ilme"})) == {"interlaced"}
    content = clip(frames=100)
    assert kinds(content) == set()
    assert "cut short" in kinds(content[: len(content) // 2])


def test_what_is_noticed_travels_with_the_raw_sample(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(clip(container="mp4", frames=6, rotation=90))
    assert [fact[0] for fact in read_video_case(tmp_path / "a.mp4", where="a").noticed] == ["rotated"]
    (tmp_path / "b.mp4").write_bytes(b"text")
    with pytest.raises(InputError, match=r"b: b\.mp4: .*unreadable video"):
        read_video_case(tmp_path / "b.mp4", where="b")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param({"rotation": 90, "container": "mp4"}, id="rotated"),
        pytest.param({"rotation": 90, "mirrored": True, "container": "mp4"}, id="mirrored"),
        pytest.param({"aspect": Fraction(4, 3)}, id="aspect"),
        pytest.param({"stamps_ms": VARIABLE, "frames": 20}, id="variable"),
    ],
)
def test_re_encoding_keeps_times_rotation_and_aspect(content: dict[str, Any]) -> None:
    before = clip(**content)
    after = reencode(before, VideoEncoding(4))
    assert probe_video(before) == probe_video(after)
    assert probe_video(before).noticed == probe_video(after).noticed
    assert shown(after) == shown(before)


def test_a_smaller_picture_keeps_its_shape() -> None:
    info = probe_video(reencode(clip(frames=3, aspect=Fraction(4, 3)), VideoEncoding(4, short_side=17)))
    assert info.pixel_aspect * Fraction(info.width, info.height) == Fraction(4, 3) * Fraction(W, H)


# --------------------------------------------------------------------------------------------------------- the record


def test_a_record_is_read_back_and_an_old_one_too() -> None:
    info = probe_video(clip(frames=20, stamps_ms=VARIABLE))
    record = info.to_record()
    assert (
        VideoInfo.from_record({**record, "starts": [list(s) for s in info.starts], "seconds": list(info.uneven or ())})
        == info
    )
    old = VideoInfo.from_record({"num_frames": 4, "fps": 5.0, "shape": [3, 4, 16, 16]})
    assert (old.uneven, old.starts, old.seconds.tolist()) == (None, (), [0.0, 0.2, 0.4, 0.6])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("num_frames", v) for v in (0, -1, "x", 2.5, None)),
        *(("fps", v) for v in (0, -1, 1e9, "x", float("nan"), None)),
        *(("shape", v) for v in ([3, 4], [3, 4, 0, 1], "x", [3, 4, 10**9, 1])),
        *(
            ("seconds", v)
            for v in ([0, 1], [0, 1, 1, 2], [0, 1, 2, float("inf")], "x", [[0], [1], [2], [3]], [0, 1, 2, "3"])
        ),
        *(
            ("starts", v)
            for v in ([1, 2], [[1, 2, 3]], [[2, 2], [1, 3]], [[-1, 2]], "x", [[1, "2"]], {"a": 1}, [[0.5, 1]])
        ),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(key: str, value: Any) -> None:
    record = {"num_frames": 4, "fps": 5.0, "shape": [3, 4, 16, 16]}
    with pytest.raises(InputError, match=key):
        VideoInfo.from_record({**record, key: value})


def test_starts_that_do_not_hold_fall_back_to_the_whole() -> None:
    content = clip()
    lied = replace(probe_video(content), starts=((5, 20), (11, 30)))
    assert [number(f) for f in decode_frames(content, [21, 31], info=lied)] == [21, 31]
