"""The pixels of a video's frames: formats, colours, sizes and turns, and what is odd of them is said."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from inflate3d.data import decode_frames, probe_video
from inflate3d.data.raw.videos import encode_video, read_video_case
from inflate3d.data.samples.reencode import VideoEncoding, reencode
from inflate3d.data.samples.video_info import VideoInfo
from inflate3d.errors import InputError
from video_clips import VARIABLE, H, W, clip, kinds, shown


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


def turned_clip(container: str, rotation: int = 0, mirrored: bool = False) -> bytes:
    """Three frames that look unlike from every side."""
    pictures = np.kron(np.random.default_rng(0).integers(0, 255, (3, 4, 6, 3)), np.ones((1, 8, 8, 1)))
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.codec_context.thread_count = 32, 48, "yuv420p", 1
        if rotation or mirrored:
            stream.set_display_rotation(rotation, hflip=mirrored)
        for each in pictures.astype(np.uint8):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(each, format="rgb24")))
        file.mux(stream.encode())
    return out.getvalue()


@pytest.mark.parametrize(
    ("container", "mirrored", "rotation"),
    [*(("mp4", m, r) for m in (False, True) for r in (0, 90, 180, 270)), *(("matroska", False, r) for r in (90, 270))],
)
def test_frames_are_turned_as_players_show_them(container: str, mirrored: bool, rotation: int) -> None:
    stored = decode_frames(turned_clip(container), range(3))
    content = turned_clip(container, rotation, mirrored)
    expected = np.rot90(stored, rotation // 90, axes=(1, 2))[:, :, :: -1 if mirrored else 1]
    info = probe_video(content)
    record = json.loads(json.dumps(info.to_record()))
    for known in (info, VideoInfo.from_record(record), None):
        np.testing.assert_array_equal(decode_frames(content, range(3), info=known), expected)
    halves = decode_frames(content, [1], info=info, short_side=16)[0]
    assert halves.shape[:2] == tuple(n // 2 for n in expected.shape[1:3])
    assert ("rotated" in kinds(content)) == ("turn" in record) == (mirrored or rotation > 0)


def test_shards_that_were_built_before_keep_their_frames_as_stored() -> None:
    content = turned_clip("mp4", 90)
    record = probe_video(content).to_record()
    del record["turn"]
    old = VideoInfo.from_record({**record, "starts": None})
    np.testing.assert_array_equal(
        decode_frames(content, range(3), info=old), decode_frames(turned_clip("mp4"), range(3))
    )


def test_a_turn_that_leaves_the_grid_is_said_and_pixels_stay() -> None:
    content = turned_clip("mp4", 30)
    (fact,) = probe_video(content).noticed
    assert (
        fact.text == "to be shown turned by 330 degrees clockwise; only multiples of 90 are, so frames stay as stored"
    )
    np.testing.assert_array_equal(decode_frames(content, range(3)), decode_frames(turned_clip("mp4"), range(3)))


def test_pixel_aspect_interlacing_and_cuts_are_said(tmp_path: Path) -> None:
    assert "pixels are 4/3 times as wide" in probe_video(clip(frames=6, aspect=Fraction(4, 3))).noticed[0].text
    assert kinds(clip(frames=6, options={"flags": "+ildct+ilme"})) == {"interlaced"}
    content = clip(frames=100)
    assert kinds(content) == set()
    assert "cut short" in kinds(content[: len(content) // 2])


@pytest.mark.parametrize(("levels", "told"), [((16, 16), {"constant"}), ((16, 90), {"still"})])
@pytest.mark.parametrize("frames", [1, 5])
def test_a_video_in_which_nothing_moves_is_said(levels: tuple[int, int], told: set[str], frames: int) -> None:
    picture = np.repeat(np.array(levels, np.uint8), (W // 2, W // 2))[None, :, None].repeat(H, 0).repeat(3, 2)
    content = encode_video(np.stack([picture] * frames), fps=8)
    assert kinds(content) == (set() if frames == 1 and told == {"still"} else told)


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
    frames = range(probe_video(before).num_frames)
    difference = decode_frames(after, frames).astype(float) - decode_frames(before, frames)
    assert np.abs(difference).mean() < 3


def test_a_smaller_picture_keeps_its_shape() -> None:
    info = probe_video(reencode(clip(frames=3, aspect=Fraction(4, 3)), VideoEncoding(4, short_side=17)))
    assert info.pixel_aspect * Fraction(info.width, info.height) == Fraction(4, 3) * Fraction(W, H)
