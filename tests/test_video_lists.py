"""Lists of videos as people write them: every row finds its file and label, or is named by its line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from inflate3d.cli.main import main
from inflate3d.data import Manifest, ShardReader
from inflate3d.data.raw.video_lists import read_video_list
from inflate3d.data.raw.videos import encode_video
from inflate3d.datasets.video_csv import VideoCSV
from inflate3d.errors import InputError

CLIP = encode_video(np.full((2, 16, 16, 3), 90, np.uint8), fps=8)
KINETICS = "label,youtube_id,time_start,time_end,split\n"


def listed(tmp_path: Path, text: str | bytes, encoding: str | None = None) -> list[tuple[str, str]]:
    file = tmp_path / "train.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [(clip.path, clip.label) for clip in read_video_list(file, "train", encoding=encoding)]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a b.mp4 0\nc (31).mp4 1\n", [("a b.mp4", "0"), ("c (31).mp4", "1")]),
        ("视频一.mp4 0\n視頻.MP4 1\n", [("视频一.mp4", "0"), ("視頻.MP4", "1")]),
        ('"a,b.mp4",0\nd.mp4,1\n', [("a,b.mp4", "0"), ("d.mp4", "1")]),
        ('"a ""x"" b.mp4",0\n', [('a "x" b.mp4', "0")]),
        ("d 'x'.mp4 0\n", [("d 'x'.mp4", "0")]),
        ("a,b.mp4 0\n", [("a,b.mp4", "0")]),
        ("d.mp4;0\ne.mp4;12\n", [("d.mp4", "0"), ("e.mp4", "12")]),
        ("d.mp4\t0\r\ne.mp4\t1\r\n", [("d.mp4", "0"), ("e.mp4", "1")]),
        ('"d.mp4","0"\n', [("d.mp4", "0")]),
        ("clip 3.mp4 000\n", [("clip 3.mp4", "000")]),
        ("\n\nd.mp4 0\n\n", [("d.mp4", "0")]),
        ("path\tlabel\nd.mp4\trun\n", [("d.mp4", "run")]),
        ("path;label\nd.mp4;run, fast\n", [("d.mp4", "run, fast")]),
        ("label,path\nrun,d.mp4\n", [("d.mp4", "run")]),
        ("sep=;\npath;label\nd.mp4;run\n", [("d.mp4", "run")]),
        ("path,label,group\nd.mp4,run,g\ne.mp4,run,\n", [("d.mp4", "run"), ("e.mp4", "run")]),
        ('"path","label"\n"d,e.mp4","run"\n', [("d,e.mp4", "run")]),
        (b"\xef\xbb\xbfd.mp4 0\n", [("d.mp4", "0")]),
        ("d.mp4 0\n".encode("utf-16"), [("d.mp4", "0")]),
        ("path\tlabel\r\né.mp4\trun\r\n".encode("utf-16"), [("é.mp4", "run")]),
        (KINETICS + "run,d,1,11,train\n", [("d_000001_000011", "run")]),
        (KINETICS.replace(",", ", ") + '"run, fast",d,1.0,11,train\n', [("d_000001_000011", "run, fast")]),
        (KINETICS.replace(",", ";") + "run;-x;0;10;train\n", [("-x_000000_000010", "run")]),
    ],
)
def test_rows_are_what_was_written(tmp_path: Path, text: str | bytes, rows: list[tuple[str, str]]) -> None:
    assert listed(tmp_path, text) == rows


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("d.mp4 0\n\xe9.mp4 1\n".encode("latin-1"), "line 2: the byte 0xe9 is not utf-8 text; .*state its encoding"),
        ("d.mp4 ²\n", "line 1: 'd.mp4 ²'; expected 'path label' with a whole number as label, or a header"),
        ("d.mp4 ٣\n", "line 1: .*expected 'path label' with a whole number"),
        ("d.mp4 0\ne.mp4 -1\n", "line 2: 'e.mp4 -1'; expected"),
        ("d.mp4,run\n", "line 1: 'd.mp4,run'; expected .*or a header with path and label in line 1"),
        ("0 d.mp4\n", "line 1: '0 d.mp4'; expected"),
        ("# my list\nd.mp4 0\n", "line 1: '# my list'; expected"),
        ("d.mp4 120 0\n", "line 1: 'd.mp4 120 0' gives the path 'd.mp4 120', which ends in none of .mp4, .avi"),
        ("d.mp4,120,0\n", "line 1: 'd.mp4,120,0' gives the path 'd.mp4,120', which"),
        ("frames/d 0\n", "line 1: .*which ends in none of"),
        ("path,label\nd.mp4,run\ne.mp4\n", "line 3: 1 values for 2 columns"),
        ("path,label\nd.mp4,\n", "line 2: no label; fill the cell, or remove the line"),
        ("path,label\n,run\n", "line 2: no path"),
        ("path,label,frames\nd.mp4,run,3\n", "unknown column 'frames'"),
        ('path,label\n"d.mp4,run\n' + "x" * 200_000, "line 2: .*quote a value as a whole"),
        ("path,label\nd.mp4,run\0\n", "line 2: holds a NUL byte"),
        ("path,label\n", "lists no cases"),
        ("", "is empty; write a line for each clip: path label"),
        (KINETICS + "run,d,,,train\n", "line 2: no time_start; fill the cell"),
        (KINETICS + "run,d,one,11,train\n", "line 2: time_start is 'one'; expected seconds, such as 10"),
        (KINETICS + "run,d,-1,11,train\n", "line 2: time_start is '-1'; expected seconds"),
        (KINETICS + "run,d,1,inf,train\n", "line 2: time_end is 'inf'; expected seconds"),
        ("youtube_id,time_start,time_end\nd,1,2\n", "no column 'label'"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(InputError, match=rf"train\.csv.*{words}"):
        listed(tmp_path, text)


def test_an_encoding_may_be_stated(tmp_path: Path) -> None:
    assert listed(tmp_path, "é.mp4 1\n".encode("cp1252"), encoding="cp1252") == [("é.mp4", "1")]


def save(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(CLIP)


@pytest.mark.parametrize(
    ("first", "second", "keys"),
    [
        ("视频一.mp4", "视频二.mp4", {"视频一", "视频二"}),
        ("a.mp4", "a.avi", {"a_mp4", "a_avi"}),
        ("v1.0.mp4", "v1.1.mp4", {"v1_0", "v1_1"}),
        ("x/a.mp4", "y/a.mp4", {"x-a", "y-a"}),
        ("a b.mp4", "a_b.mp4", None),
        ("a/b.mp4", "a-b.mp4", None),
    ],
)
def test_each_file_has_a_key_of_its_own(tmp_path: Path, first: str, second: str, keys: set[str] | None) -> None:
    save(tmp_path, first, second, "v.mp4")
    (tmp_path / "train.csv").write_text(f"{first} 0\n{second} 1\n", encoding="utf-8")
    (tmp_path / "val.csv").write_text("v.mp4 1\n")
    cases = [c for c in VideoCSV(tmp_path).cases() if c.split == "train"]
    assert [c.source for c in cases] == [(first, 0), (second, 1)]
    found = {c.key for c in cases}
    assert len(found) == 2
    assert keys in (None, found)


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"train": "d.mp4 0\nd.mp4 0\n"}, r"train.csv line 2: the clip 'd.mp4' stands in .*train.csv line 1 already"),
        ({"train": "d.mp4 0\n./d.mp4 0\n"}, r"train.csv line 2: the clip './d.mp4' stands in .*train.csv line 1"),
        ({"train": "d.mp4 0\n", "val": "d.mp4 1\n"}, r"val.csv line 1: the clip 'd.mp4' stands in .*train.csv line 1"),
        ({"train": "d.mp4 0\ne.mp4 9999999999\n"}, r"train.csv line 2: label 9999999999 is taken for the index of a"),
        ({"train": KINETICS + "run,k,1,11,train\n"}, r"train.csv line 2: 2 files are the clip k_000001_000011: run/k_"),
    ],
)
def test_a_clip_that_is_no_one_clip_is_refused(tmp_path: Path, lists: dict[str, str], words: str) -> None:
    save(tmp_path, "d.mp4", "e.mp4", "run/k_000001_000011.mp4", "sit/k_000001_000011.mkv", "sit/._k_000001_000011.mp4")
    for name, text in lists.items():
        (tmp_path / f"{name}.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        print(VideoCSV(tmp_path).card, VideoCSV(tmp_path).cases())


def test_a_label_beyond_the_class_file_is_named_by_its_line(tmp_path: Path) -> None:
    save(tmp_path, "d.mp4", "e.mp4")
    (tmp_path / "names.txt").write_bytes("läuft\nsitzt\n".encode("utf-16"))
    (tmp_path / "train.csv").write_text("d.mp4 0\ne.mp4 2\n")
    with pytest.raises(InputError, match=r"train.csv line 2: label '2' is not one of the 2 classes; fix the label"):
        VideoCSV(tmp_path, class_file="names.txt").cases()


@pytest.mark.slow
def test_a_list_of_a_spreadsheet_is_built_and_a_wrong_one_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "raw"
    save(root, "视频一.mp4", "视频二.mp4")
    (root / "train.csv").write_bytes("path;label\r\n视频一.mp4;run\r\n视频二.mp4;sit\r\n".encode("utf-16"))
    command = ["shards", "build", "video_csv", "--root", str(root), "--val_fraction", "0", "--num_workers", "0"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    reader = ShardReader(tmp_path / "out", Manifest.load(tmp_path / "out"))
    assert reader.keys(0) == ["视频一", "视频二"]
    assert [reader.record(0, i)["targets"]["label"] for i in (0, 1)] == [0, 1]
    (root / "train.csv").write_bytes("é.mp4 0\n".encode("cp1252"))
    assert main([*command, "--output", str(tmp_path / "more")]) == 2
    assert "train.csv line 1: the byte 0xe9 is not utf-8 text" in capsys.readouterr().err
