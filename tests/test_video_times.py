"""When the frames of a video are shown, and the record that a shard holds of it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from inflate3d.contracts import RawSample
from inflate3d.data import probe_video
from inflate3d.data.samples.frame_times import frame_times
from inflate3d.data.samples.video_info import VideoInfo
from inflate3d.data.samples.views import make_stage
from inflate3d.data.shards.members import decode_members, encode_sample
from inflate3d.datasets.video_folder import VideoFolder
from inflate3d.errors import InputError
from video_clips import VARIABLE, X264, H, W, clip, kinds, shown


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
        *(("turn", v) for v in ([1, 0, 0], [1, 1, 0, 0], [2, 0, 0, 1], [[1], 0, 0, 1], "x", None, {"a": 1})),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(key: str, value: Any) -> None:
    record = {"num_frames": 4, "fps": 5.0, "shape": [3, 4, 16, 16]}
    with pytest.raises(InputError, match=key):
        VideoInfo.from_record({**record, key: value})
