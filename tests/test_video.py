"""Video: frames by number equal a decode of the whole file; what is no video is refused."""

from __future__ import annotations

import contextlib
import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from inflate3d.data.samples import frames as video
from inflate3d.data.samples.frames import decode_frames
from inflate3d.data.samples.video_info import probe_video
from inflate3d.errors import InputError
from nightly import slow_but

NAMES = ["mp4/libx264", "mkv/libx264", "mp4/mpeg4", "avi/mpeg4", "webm/libvpx", "webm/libvpx-vp9", "mpegts/libx264"]


def encoded(name: str, *, frames: int = 40, size: tuple[int, int] = (48, 64), first_pts: int = 0) -> bytes:
    """A clip of moving noise, key frames 12 apart, with B-frames where the codec has them; `name` container/codec."""
    container_name, codec = name.split("/")
    options = {"g": "12", "bf": "2", "sc_threshold": "0"} if codec in ("libx264", "mpeg4") else {"g": "12"}
    noise = np.random.default_rng(0).integers(0, 255, (frames + size[0] // 8, size[1] // 8, 3), np.uint8).repeat(8, 1)
    out = io.BytesIO()
    with av.open(out, "w", format={"mkv": "matroska"}.get(container_name, container_name)) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(noise[i : i + size[0] // 8].repeat(8, 0), format="rgb24")
            frame.pts, frame.time_base = i + first_pts, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def all_frames(source: bytes | Path) -> np.ndarray:
    """Every frame of the stream that FFmpeg chooses, in the order in which it shows them."""
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
        stream = container.streams.best("video")
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)])


@pytest.mark.parametrize("name", slow_but(NAMES, 2))
def test_any_frames_in_any_order_equal_a_decode_of_all(name: str, tmp_path: Path) -> None:
    content = encoded(name)
    expected = all_frames(content)
    info = probe_video(content)
    assert (info.num_frames, info.height, info.width, round(info.fps)) == (40, 48, 64, 25)
    for indices in ([0], [39], [11, 12, 13], [30, 2, 2, 17], list(range(40)), [25, 25, 25]):
        np.testing.assert_array_equal(decode_frames(content, indices), expected[indices])
    path = tmp_path / f"clip.{name.split('/')[0]}"
    path.write_bytes(content)
    assert probe_video(path) == probe_video(memoryview(content)) == info
    np.testing.assert_array_equal(decode_frames(path, [20, 21]), expected[[20, 21]])


def test_only_the_window_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded("mp4/libx264")
    info, expected = probe_video(content), all_frames(content)
    assert [frame for _, frame in info.starts] == [12, 24, 36]
    seen: list[int] = []
    decoded = video.decoded
    monkeypatch.setattr(video, "decoded", lambda *args: [seen.append(f.pts) or f for f in decoded(*args)])
    np.testing.assert_array_equal(decode_frames(content, [26, 28], info=info), expected[[26, 28]])
    assert len(seen) <= 6
    seen.clear()
    np.testing.assert_array_equal(decode_frames(content, [1, 37], info=info), expected[[1, 37]])
    assert len(seen) <= 6  # what lies between is jumped over


def test_another_video_that_is_closed_meanwhile_changes_no_start() -> None:
    content = encoded("mp4/libx264")
    with video.opened(content) as (container, stream):
        others = list(video.packets(container, stream))
        for i, packet in enumerate(others):
            video.mark(packet, i)
        expected = probe_video(memoryview(content)).starts
        with video.opened(content) as (second, again):
            mine = list(video.packets(second, again))
            for i, packet in enumerate(mine):
                video.mark(packet, i)
            del others, packet
            frames = [frame for packet in (*mine, None) for frame in video.decoded(again, packet)]
            assert sorted(map(video.packet_of, frames)) == list(range(40))  # type: ignore[type-var]
    assert [frame for _, frame in expected] == [12, 24, 36]


def test_frames_before_the_start_of_an_edit_list_are_not_counted() -> None:
    content = encoded("mp4/libx264", first_pts=-5)
    expected = all_frames(content)
    assert probe_video(content).num_frames == len(expected)
    for i in (0, 1, 9, len(expected) - 1):
        np.testing.assert_array_equal(decode_frames(content, [i])[0], expected[i])


def test_the_short_side_is_scaled_and_the_aspect_kept() -> None:
    content = encoded("mp4/libx264", frames=3, size=(48, 96))
    assert decode_frames(content, [0, 2], short_side=24).shape == (2, 24, 48, 3)
    whole, half = decode_frames(content, [1])[0].astype(float), decode_frames(content, [1], short_side=24)[0]
    pooled = whole.reshape(24, 2, 48, 2, 3).mean((1, 3))
    assert np.corrcoef(pooled.ravel(), half.ravel())[0, 1] > 0.97


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    content = encoded("mp4/libx264")
    for wrong in (b"", b"nonsense" * 99, content[: len(content) // 2], bytes(5000)):
        with pytest.raises(InputError, match="unreadable video"):
            probe_video(wrong)
    with pytest.raises(InputError, match="no such file"):
        decode_frames(tmp_path / "absent.mp4", [0])
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(InputError, match=r"empty\.mp4: unreadable video"):
        probe_video(tmp_path / "empty.mp4")


def test_frames_that_do_not_exist_are_refused() -> None:
    content = encoded("mp4/libx264", frames=5)
    for indices in ([5], [-1], []):
        with pytest.raises(InputError, match="frame"):
            decode_frames(content, indices)
    with pytest.raises(InputError, match="frames \\[5\\] do not decode"):
        decode_frames(encoded("avi/mpeg4", frames=5), [5])


def test_a_damaged_stream_raises_or_fills_but_never_hangs_or_crashes() -> None:
    content = bytearray(encoded("mkv/libx264"))
    rng = np.random.default_rng(0)
    for _ in range(20):
        hurt = content.copy()
        for position in rng.integers(200, len(hurt), 30):
            hurt[position] = rng.integers(256)
        with contextlib.suppress(InputError):
            assert decode_frames(bytes(hurt), [3, 30]).shape == (2, 48, 64, 3)


def test_a_play_list_opens_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(encoded("mp4/libx264", frames=3))
    secret = tmp_path / "secret.mp4"
    lists = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile {secret}\n",
    }
    for text in lists.values():
        (tmp_path / "list.mp4").write_text(text)
        for source in (text.encode(), tmp_path / "list.mp4"):
            with pytest.raises(InputError, match="unreadable video"):
                probe_video(source)


@pytest.mark.data
def test_every_real_file_equals_a_decode_of_all(shared_data: Path) -> None:
    files = [p for p in sorted((shared_data / "decode").iterdir()) if p.suffix != ".pt"]
    files += sorted((shared_data / "arid6").rglob("*.mp4"))[::25]
    assert len(files) > 9
    for path in files:
        expected, info = all_frames(path), probe_video(path)
        assert (info.num_frames, info.height, info.width) == expected.shape[:3], path.name
        for start in (0, len(expected) // 3, len(expected) - 5):
            indices = [start, start + 2, start + 4]
            np.testing.assert_array_equal(decode_frames(path, indices), expected[indices], err_msg=path.name)


@pytest.mark.data
def test_the_best_stream_is_chosen_and_its_pixels_are_right(shared_data: Path) -> None:
    import torch

    path = shared_data / "decode" / "nasa_13013.mp4"
    for i in (0, 35, 389):
        reference = torch.load(f"{path}.stream3.frame{i:06d}.pt", weights_only=True).numpy()
        frame = decode_frames(path, [i])[0]
        assert frame.shape == reference.shape
        assert np.abs(frame.astype(int) - reference).mean() < 2
