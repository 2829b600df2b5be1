"""Which frames a video shows: each once, in order, whatever the container claims of its packets."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from inflate3d.data import decode_frames, probe_video
from inflate3d.errors import InputError
from video_clips import OPEN, X264, H, W, clip, key_frame, kinds, number, picture, remuxed, shown, whole


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


def test_starts_that_do_not_hold_fall_back_to_the_whole() -> None:
    content = clip()
    lied = replace(probe_video(content), starts=((5, 20), (11, 30)))
    assert [number(f) for f in decode_frames(content, [21, 31], info=lied)] == [21, 31]
