"""Raw layouts of videos as people really have them: folders a class, lists, Kinetics."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from inflate3d.data.raw.videos import encode_video
from inflate3d.data.samples.frames import decode_frames
from inflate3d.datasets.played_videos import PlayedVideos
from inflate3d.datasets.video_csv import VideoCSV
from inflate3d.datasets.video_folder import VideoFolder
from inflate3d.errors import InputError


def save_clip(path: Path, *, num_frames: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_video(np.full((num_frames, 16, 16, 3), 90, np.uint8), fps=8))


def test_video_folder_takes_splits_that_are_made_already(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("run", "walk"):
            save_clip(tmp_path / split / name / "clip.mp4")
    cases = VideoFolder(tmp_path).cases()
    assert {c.key: c.split for c in cases} == {f"{s}-{n}-clip": s for s in ("train", "val") for n in ("run", "walk")}


def test_video_folder_keys_take_the_class_where_stems_repeat(tmp_path: Path) -> None:
    for name in ("run", "walk"):
        for i in range(2):
            save_clip(tmp_path / name / f"{i}.mp4")
    (tmp_path / "run" / "._0.mp4").write_bytes(b"left by macOS")
    (tmp_path / "run" / "notes.txt").write_text("no video")
    assert {c.key for c in VideoFolder(tmp_path).cases()} == {"run-0", "run-1", "walk-0", "walk-1"}


def test_video_folder_of_one_class_or_a_wrong_pattern_is_refused(tmp_path: Path) -> None:
    save_clip(tmp_path / "run" / "a.mp4")
    with pytest.raises(InputError, match="at least two classes"):
        VideoFolder(tmp_path)
    save_clip(tmp_path / "walk" / "b.mp4")
    with pytest.raises(InputError, match="not a regular expression"):
        VideoFolder(tmp_path, group_pattern="(")
    with pytest.raises(InputError, match=r"finds no \(group\) in 'a'"):
        VideoFolder(tmp_path, group_pattern=r"_(\d+)").cases()


def test_video_folder_takes_only_the_files_of_a_pattern(tmp_path: Path) -> None:
    for name in ("run_1_0", "run_2_0", "sit_1_0", "jump_3_0"):
        save_clip(tmp_path / name.split("_")[0] / f"{name}.mp4")
    dataset = VideoFolder(tmp_path, file_pattern=r"_1_\d+$", val_fraction=0)
    assert [c.key for c in dataset.cases()] == ["run_1_0", "sit_1_0"]
    assert dataset.card.targets["label"].names == ("run", "sit")
    with pytest.raises(InputError, match=r"holds 1 videos that match file_pattern '_2_'"):
        VideoFolder(tmp_path, file_pattern="_2_")
    with pytest.raises(InputError, match=r"file_pattern '\[' is not a regular expression"):
        VideoFolder(tmp_path, file_pattern="[")


@pytest.mark.parametrize("separator", [" ", ",", "\t", ", "])
def test_video_csv_reads_plain_lists(tmp_path: Path, separator: str) -> None:
    for name in ("a b", "c"):
        save_clip(tmp_path / "clips" / f"{name}.mp4")
    (tmp_path / "train.txt").write_text(f"clips/a b.mp4{separator}1\n\n")
    (tmp_path / "val.txt").write_text(f"{tmp_path}/clips/c.mp4{separator}0\n")
    dataset = VideoCSV(tmp_path)
    assert dataset.card.targets["label"].names == ("0", "1")
    assert {c.key: c.split for c in dataset.cases()} == {"clips-a_b": "train", "clips-c": "val"}
    assert {k: s.targets for k, s in {c.key: dataset.read(c) for c in dataset.cases()}.items()} == {
        "clips-a_b": {"label": 1},
        "clips-c": {"label": 0},
    }


def test_video_csv_takes_names_from_a_class_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("jump\nrun\nwalk\n")
    (tmp_path / "train.csv").write_text("a.mp4 2\nb.mp4 0\nc.mp4 1\n")
    dataset = VideoCSV(tmp_path, class_file="names.txt", val_count=0)
    assert dataset.card.targets["label"].names == ("jump", "run", "walk")
    assert [c.source[1] for c in dataset.cases()] == [2, 0, 1]
    (tmp_path / "train.csv").write_text("a.mp4 3\n")
    with pytest.raises(InputError, match="label '3' is not one of the 3 classes"):
        VideoCSV(tmp_path, class_file="names.txt").cases()


def test_video_csv_finds_kinetics_clips_in_folders_and_skips_missing_ones_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_clip(tmp_path / "train" / "abseiling" / "-x_000001_000011.mp4")
    save_clip(tmp_path / "val" / "y_000002_000012.webm.mp4")
    save_clip(tmp_path / "val" / "z_000002_000012.mp4")
    header = "label,youtube_id,time_start,time_end,split\n"
    (tmp_path / "train.csv").write_text(header + "abseiling,-x,1,11,train\nzumba,gone,5,15,train\n")
    (tmp_path / "validate.csv").write_text(header + "zumba,z,2,12,validate\n")
    dataset = VideoCSV(tmp_path)
    missing = dataset.cases()[1]
    with pytest.raises(InputError, match="its file is missing"):
        dataset.read(missing)
    with caplog.at_level(logging.WARNING):
        kept = VideoCSV(tmp_path, skip_missing=True).cases()
    assert "1 of 3 clips have no file" in caplog.text
    assert [(c.split, c.source) for c in kept] == [
        ("train", ("train/abseiling/-x_000001_000011.mp4", 0)),
        ("val", ("val/z_000002_000012.mp4", 1)),
    ]


def test_video_csv_with_groups_and_no_val_list_deals_whole_groups(tmp_path: Path) -> None:
    rows = [f"clip_{i}.mp4,{'ab'[i % 2]},scene_{i // 4}" for i in range(16)]
    (tmp_path / "train.csv").write_text("\n".join(["path,label,group", *rows]))
    cases = VideoCSV(tmp_path, val_fraction=0.25).cases()
    assert Counter(c.split for c in cases) == {"train": 12, "val": 4}
    assert len({c.group for c in cases if c.split == "val"}) == 1


def test_video_csv_line_that_is_no_clip_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a.mp4 1\nb.mp4\n")
    with pytest.raises(InputError, match=r"train\.csv line 2: 'b\.mp4'"):
        VideoCSV(tmp_path).cases()


def test_played_videos_hold_the_frames_in_the_order_of_their_play(tmp_path: Path) -> None:
    brighter = np.broadcast_to(np.arange(11, dtype=np.uint8)[:, None, None, None] * 20 + 20, (11, 16, 16, 3))
    for name in ("run_0", "run_1", "walk_0", "walk_1"):
        (tmp_path / name[:-2]).mkdir(exist_ok=True)
        (tmp_path / name[:-2] / f"{name}.mp4").write_bytes(encode_video(brighter, fps=8))
    dataset = PlayedVideos(tmp_path, num_frames=5, val_fraction=0.5)
    cases = dataset.cases()
    assert len({case.split for case in cases if case.key.startswith("run_0-")}) == 1
    levels = {}
    for case in cases[:4]:
        raw = dataset.read(case)
        frames = decode_frames(raw.video, range(5))
        levels[case.source[1]] = [round((float(f.mean()) - 20) / 20) for f in frames]
        assert dataset.card.targets["play"].names[raw.targets["play"]] == case.source[1]
    assert levels["forwards"] == [3, 4, 5, 6, 7]
    assert levels["backwards"] == [7, 6, 5, 4, 3]
    assert levels["fast"] == [1, 3, 5, 7, 9]
    assert sorted(levels["shuffled"]) == levels["forwards"]
    assert len(set(np.diff(levels["shuffled"]))) > 1


def test_played_videos_refuse_what_is_too_short_to_be_fast(tmp_path: Path) -> None:
    for name in ("run", "walk"):
        save_clip(tmp_path / name / "a.mp4", num_frames=6)
    dataset = PlayedVideos(tmp_path, num_frames=4, val_fraction=0)
    with pytest.raises(InputError, match=r"has 6 frames; 4 played fast need 7"):
        dataset.read(dataset.cases()[0])
    with pytest.raises(InputError, match="num_frames is 2"):
        PlayedVideos(tmp_path, num_frames=2)
