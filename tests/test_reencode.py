"""Videos encoded anew by a build: the same frames, reached fast, in bytes that do not depend on who encodes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inflate3d.cli.main import main
from inflate3d.data import Manifest, ShardReader, build_shards, check_shards
from inflate3d.data.raw.videos import encode_video
from inflate3d.data.samples import reencode as reencode_module
from inflate3d.data.samples.frames import decode_frames, every_frame
from inflate3d.data.samples.reencode import VideoEncoding, reencode
from inflate3d.data.samples.video_info import probe_video
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError


def clip(frames: int = 30, height: int = 64, width: int = 96) -> bytes:
    """A soft stripe that moves, so that every frame can be told from the others."""
    places = np.arange(width)[None, None] - 2.0 * np.arange(frames)[:, None, None] - 20
    levels = 40 + 180 * np.exp(-((places / 12) ** 2)) + np.zeros((1, height, 1))
    return encode_video(np.repeat(levels.astype(np.uint8)[..., None], 3, -1), fps=25)


def key_frames(content: bytes) -> list[int]:
    import av

    with av.open(io.BytesIO(content)) as container:
        return [i for i, p in enumerate(q for q in container.demux(video=0) if q.size) if p.is_keyframe]


@pytest.mark.parametrize("gop", [1, 4, 12])
def test_the_frames_stay_and_a_key_frame_comes_every_gop(gop: int) -> None:
    before = clip()
    after = reencode(before, VideoEncoding(gop))
    old, new = probe_video(before), probe_video(after)
    assert old == new
    assert key_frames(after) == list(range(0, 30, gop))
    stored, again = (decode_frames(c, range(30)).astype(float) for c in (before, after))
    assert np.abs(stored - again).mean() < 2
    nearest = [int(np.argmin([np.abs(frame - other).mean() for other in stored])) for frame in again]
    assert nearest == list(range(30))


def test_any_clip_is_bit_equal_to_a_decode_of_the_whole_file() -> None:
    content = reencode(clip(), VideoEncoding(8))
    whole = [frame.to_ndarray(format="rgb24") for frame in every_frame(content)]
    for first in range(0, 28):
        wanted = [first, first + 1, first + 2]
        assert np.array_equal(decode_frames(content, wanted), np.stack([whole[i] for i in wanted]))


def test_larger_videos_are_scaled_down_and_smaller_ones_stay() -> None:
    info = probe_video(reencode(clip(4, 64, 98), VideoEncoding(4, short_side=32)))
    assert (info.height, info.width) == (32, 48)  # 49 would be odd
    info = probe_video(reencode(clip(4), VideoEncoding(4, short_side=256)))
    assert (info.height, info.width) == (64, 96)


def test_the_same_bytes_come_out_and_a_cut_file_is_refused() -> None:
    content = clip()
    assert reencode(content, VideoEncoding()) == reencode(content, VideoEncoding())
    with pytest.raises(InputError, match="unreadable video"):
        reencode(content[: len(content) // 2], VideoEncoding())


@pytest.mark.parametrize("values", [{"gop": 0}, {"gop": 4, "short_side": 2}, {"crf": 99}])
def test_a_setting_that_makes_no_sense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"video_\w+ is \d+; allowed"):
        VideoEncoding(**values)


def test_the_bytes_depend_neither_on_the_cpu_nor_on_what_was_encoded_before(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy(kind="video_classification", num_train=3, num_val=1, num_frames=12)
    videos = [toy.read(case).video for case in toy.cases()]
    encoded = [[reencode(video, VideoEncoding(4)) for video in videos] for _ in range(10)]
    assert all(each == encoded[0] for each in encoded)
    told = reencode_module._options(VideoEncoding(4))
    told["x264-params"] += ":asm=0"  # as a CPU without any of the instructions that x264 knows
    monkeypatch.setattr(reencode_module, "_options", lambda encoding: told)
    assert [reencode(video, VideoEncoding(4)) for video in videos] == encoded[0]


def test_a_build_encodes_anew_and_is_another_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = Toy(kind="video_classification", num_train=3, num_val=1, num_frames=12)
    build_shards(toy, tmp_path / "one", progress=False, encode={"gop": 4})
    options = ["--kind", "video_classification", "--num_train", "3", "--num_val", "1", "--num_frames", "12"]
    output = ["shards", "build", "toy", *options, "--num_workers", "0", "--output", str(tmp_path / "two")]
    assert main([*output, "--video_gop", "4"]) == 0
    manifest = Manifest.load(tmp_path / "one")
    assert Manifest.load(tmp_path / "two").shards == manifest.shards
    assert check_shards(tmp_path / "one") == []
    raw = ShardReader(tmp_path / "one", manifest, "train").sample(0, 0).decode()
    assert key_frames(bytes(raw["video"])) == [0, 4, 8]
    assert raw["json"]["num_frames"] == 12
    assert main(output) == 2
    assert "holds shards of another build" in capsys.readouterr().err
    assert main([*output, "--video_short_side", "64"]) == 2
    assert "add --video_gop 12" in capsys.readouterr().err
    with pytest.raises(InputError, match="toy_segmentation: encode: samples are stored as they are"):
        build_shards(Toy(), tmp_path / "three", progress=False, encode={"gop": 4})
