"""Tars as tar, bsdtar and scripts leave them: litter passed over, links and lost parts refused, new labels noticed."""

from __future__ import annotations

import io
import os
import random
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from inflate3d.data import BrokenSample, Manifest, ShardReader, check_shards
from inflate3d.data.raw.videos import encode_video
from inflate3d.data.shards.reader import OutdatedIndex
from inflate3d.data.shards.tar_index import index_tars
from inflate3d.data.shards.tar_mapping import TarMapping
from inflate3d.data.shards.tar_walk import is_litter
from inflate3d.errors import InputError
from inflate3d.training.datamodule import DataModule

CLIP = encode_video(np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), np.uint8), fps=5)
TARGET = {"type": "class_label", "names": ["a", "b", "c"]}
MAPPING: dict[str, Any] = {
    "card": {"name": "t", "media": "video", "modality": "rgb", "targets": {"label": TARGET}},
    "members": {"video": "mp4", "label": "cls"},
}
Fill = Callable[[tarfile.TarFile], None]


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(content))


def samples(*keys: str, labels: str = "0120120", video: str = "mp4", label: str = "cls") -> Fill:
    def fill(tar: tarfile.TarFile) -> None:
        for key, value in zip(keys, labels, strict=False):
            add(tar, f"{key}.{label}", value.encode())
            add(tar, f"{key}.{video}", CLIP)

    return fill


def write(path: Path, *fills: Fill, form: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for fill in fills:
            fill(tar)
    return path


def member(name: str, content: bytes = b"{}", **fields: Any) -> Fill:
    return lambda tar: add(tar, name, content, **fields)


def indexed(tar: Path, output: Path, mapping: dict[str, Any] = MAPPING, **options: Any) -> Manifest:
    return index_tars([str(tar)], TarMapping.from_dict(mapping), output, progress=False, **options)


def read(output: Path) -> list[tuple[str, int]]:
    reader = ShardReader(output, Manifest.load(output))
    raws = [reader.sample(0, i) for i in range(len(reader.keys(0)))]
    assert all(bytes(raw.decode()["video"]) == CLIP for raw in raws)
    return [(raw.key, raw.decode()["json"]["targets"]["label"]) for raw in raws]


def of_macos(tar: tarfile.TarFile) -> None:
    """What bsdtar writes on macOS: an AppleDouble file before each file."""
    for i, key in enumerate(("k0", "k1")):
        for suffix, content in (("cls", str(i).encode()), ("mp4", CLIP)):
            add(tar, f"./._{key}.{suffix}", b"\0\5\x16\7")
            add(tar, f"./{key}.{suffix}", content)


@pytest.mark.parametrize(
    "fill",
    [
        of_macos,
        *(
            lambda tar, name=name: (add(tar, name, b"{}"), samples("k0", "k1")(tar))
            for name in (
                *(
                    "README",
                    "README.md",
                    ".DS_Store",
                    "__MACOSX/._k0.mp4",
                    "__meta__.json",
                    "LICENSE.txt",
                    "sub/Makefile",
                ),
                *("PaxHeaders.123/k0.mp4", "PaxHeader/k0.mp4", ".git/config.cls", "Thumbs.db", "./.cache/k9.cls"),
            )
        ),
        lambda tar: (add(tar, "x/", type=tarfile.DIRTYPE), samples("k0", "k1")(tar)),
        lambda tar: (samples("k0", "k1")(tar), add(tar, "._link", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
        lambda tar: (samples("k0")(tar), add(tar, "notes/a.txt", b"x"), samples("k1", labels="1")(tar)),
    ],
)
def test_what_belongs_to_no_sample_is_passed_over(tmp_path: Path, fill: Fill) -> None:
    indexed(write(tmp_path / "in" / "t.tar", fill), tmp_path / "out")
    assert read(tmp_path / "out") == [("k0", 0), ("k1", 1)]
    assert check_shards(tmp_path / "out") == []


def test_it_is_said_what_was_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    indexed(write(tmp_path / "in" / "t.tar", member("README"), member("a.txt"), samples("k0")), tmp_path / "out")
    assert "t.tar: 2 members are of no sample and passed over: 'README', 'a.txt'" in caplog.text


@pytest.mark.parametrize(
    ("name", "is_passed_over"),
    [
        *((name, True) for name in ("._a.mp4", "a/._b.mp4", ".a/b.mp4", "__MACOSX/a.mp4", "a/PaxHeaders.1/b.mp4")),
        *((name, True) for name in ("a", "a/b", "__x__", "__x__/a.mp4", "@LongLink", "PaxHeader/a.b")),
        *(
            (name, False)
            for name in ("a.mp4", "./a.mp4", "a.b/c.mp4", "__x__.mp4", "_.mp4", "a/__MACOSX.mp4", "a..mp4")
        ),
    ],
)
def test_litter_is_told_by_its_name(name: str, is_passed_over: bool) -> None:
    assert is_litter(name) == is_passed_over


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("long", ["d" * 90 + "/" + "e" * 80, "d" * 150 + "/" + "e" * 80, "段" * 60 + "/" + "e" * 80])
def test_long_names_are_read_as_webdataset_reads_them(tmp_path: Path, form: int, long: str) -> None:
    path = write(tmp_path / "in" / "t.tar", samples(f"{long}0", f"{long}1"), form=form)
    theirs = [s["__key__"] for s in wds.WebDataset(str(path), shardshuffle=False, empty_check=False)]  # type: ignore[attr-defined]
    assert theirs == [f"{long}0", f"{long}1"]
    indexed(path, tmp_path / "out")
    keys = [key for key, _ in read(tmp_path / "out")]
    assert len(set(keys)) == 2
    assert all(len(key.encode()) <= 200 and key[:8] == long[:8] for key in keys)


def test_keys_that_differ_in_signs_alone_stay_apart(tmp_path: Path) -> None:
    keys = ("a/k", "b/k", "a_k", "视频一", "视频二", "a b", "clip-1")
    indexed(write(tmp_path / "in" / "t.tar", samples(*keys)), tmp_path / "out")
    found = read(tmp_path / "out")
    assert [label for _, label in found] == [0, 1, 2, 0, 1, 2, 0]
    assert len({key for key, _ in found}) == 7
    assert {"视频一", "视频二", "b_k", "a_b", "clip-1"} <= {key for key, _ in found}


@pytest.mark.parametrize(
    ("content", "label"),
    [(b" 2\r\n", 2), (b"\xef\xbb\xbf2", 2), (b"2.0", 2), (b"c", 2), (b"\xef\xbb\xbfb\n", 1), (b"00", 0)],
)
def test_labels_are_read_as_editors_save_them(tmp_path: Path, content: bytes, label: int) -> None:
    indexed(write(tmp_path / "in" / "t.tar", member("k0.cls", content), member("k0.MP4", CLIP)), tmp_path / "out")
    assert read(tmp_path / "out") == [("k0", label)]


@pytest.mark.parametrize(
    ("fills", "words"),
    [
        (
            (samples("k0"), member("k1.mp4", b"", type=tarfile.LNKTYPE, linkname="k0.mp4")),
            r"'k1.mp4' is no plain file but a link to 'k0.mp4'; write the tar again with tar --deref",
        ),
        ((samples("k0"), member("k1.mp4", b"", type=tarfile.SYMTYPE, linkname="/x")), "but a link to '/x'"),
        ((samples("k0"), member("k1.mp4", b"", type=tarfile.FIFOTYPE)), "'k1.mp4' is no plain file; write"),
        ((samples("k0"), member("k1.mp4", b"", type=tarfile.CHRTYPE)), "'k1.mp4' is no plain file; write"),
        ((samples("k0"), member("../._k1.mp4")), "is a name outside the folder"),
        ((samples("k0"), member("a/../../k1.mp4")), "is a name outside the folder"),
        ((samples("k0"), member("/k1.mp4")), "is a name outside the folder"),
        ((samples("k0", "k1"), member("k0.txt")), None),
        ((samples("k0", "k1"), member("k0.cls")), "the members of 'k0' do not follow each other; sort the tar by name"),
        (
            (samples("clip 1.0", "clip 2.0"),),
            "a key ends at the first dot of a name: rename files whose keys hold dots",
        ),
        ((samples("./k0", "k0"),), "'k0' is listed twice"),
        ((member("README"),), "holds no member"),
        ((samples("k0"), member("k1.cls", b"1")), r"k1: t.tar: k1: has no member .mp4 for video; it has: cls"),
        ((samples("k0"), member("k1.cls", b"1"), member("k1.mp4", b"")), "k1: .*unreadable video"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_remedy(
    tmp_path: Path, fills: tuple[Fill, ...], words: str | None
) -> None:
    path = write(tmp_path / "in" / "t.tar", *fills)
    if words is None:  # nobody asked for it: passed over
        assert indexed(path, tmp_path / "out").num_samples() == 2
        return
    with pytest.raises(InputError, match=words):
        indexed(path, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("zeros", [0, 512, 1024, 10240])
def test_tars_put_one_behind_the_other_are_refused(tmp_path: Path, zeros: int) -> None:
    path, more = write(tmp_path / "in" / "t.tar", samples("k0")), write(tmp_path / "more.tar", samples("k1"))
    path.write_bytes(path.read_bytes() + bytes(zeros) + more.read_bytes())
    words = r"t.tar: ends at byte \d+, and more follows: tars put one behind the other, .*tar --concatenate"
    with pytest.raises(InputError, match=words):
        indexed(path, tmp_path / "out")


def test_a_member_that_became_zeros_is_no_end(tmp_path: Path) -> None:
    path = write(tmp_path / "in" / "t.tar", samples("k0", "k1", "k2"))
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        start, stop = tar.getmember("k1.cls").offset, tar.getmember("k2.cls").offset
    content[start:stop] = bytes(stop - start)
    path.write_bytes(content)
    with pytest.raises(InputError, match="or a part that was lost"):
        indexed(path, tmp_path / "out")


def test_zeros_behind_the_end_are_no_matter(tmp_path: Path) -> None:
    path = write(tmp_path / "in" / "t.tar", samples("k0", "k1"))
    path.write_bytes(path.read_bytes() + bytes(700))
    indexed(path, tmp_path / "out")
    assert read(tmp_path / "out") == [("k0", 0), ("k1", 1)]


# ------------------------------------------------------------------------------------------------ what changes later


def relabelled(tmp_path: Path, *, old: str = "01", new: str = "22") -> Path:
    """A tar that was indexed, and then written again with other labels: of the same size, and of the same time."""
    path = write(tmp_path / "in" / "t.tar", samples("k0", "k1", labels=old))
    indexed(path, tmp_path / "out" / "t")
    before = path.stat()
    write(path, samples("k0", "k1", labels=new))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    return path


def test_corrected_labels_are_read_by_the_same_command(tmp_path: Path) -> None:
    path = relabelled(tmp_path)
    assert any("differs from what was indexed" in fault for fault in check_shards(tmp_path / "out" / "t"))
    indexed(path, tmp_path / "out" / "t")
    assert read(tmp_path / "out" / "t") == [("k0", 2), ("k1", 2)]
    assert check_shards(tmp_path / "out" / "t") == []


def test_an_outdated_index_is_refused_where_a_sample_is_read(tmp_path: Path) -> None:
    relabelled(tmp_path, new="02")
    reader = ShardReader(tmp_path / "out" / "t", Manifest.load(tmp_path / "out" / "t"))
    assert reader.sample(0, 0).key == "k0"
    with pytest.raises(OutdatedIndex, match=r"t.tar: k1.cls is not what was indexed; index the tars again"):
        reader.sample(0, 1)


def test_a_run_ends_at_an_outdated_index_and_takes_no_substitute(tmp_path: Path) -> None:
    relabelled(tmp_path, new="02")
    options = {"batch_size": 2, "sample": {"num_frames": 2, "crop_size": 8, "short_side": 8}}
    data = DataModule(str(tmp_path / "out"), {"t": options}, seed=1)
    with pytest.raises(InputError, match=r"dataset 't': .*k1.cls is not what was indexed"):
        data.first_batches("t", 1)


def test_a_field_of_a_json_member_is_checked_too(tmp_path: Path) -> None:
    mapping = {**MAPPING, "members": {"video": "mp4", "label": "json:about.label"}}
    path = write(tmp_path / "in" / "t.tar", member("k0.json", b'{"about": {"label": 1}}'), member("k0.mp4", CLIP))
    indexed(path, tmp_path / "out", mapping)
    assert read(tmp_path / "out") == [("k0", 1)]
    write(path, member("k0.json", b'{"about": {"label": 2}}'), member("k0.mp4", CLIP))
    with pytest.raises(OutdatedIndex, match=r"k0.json is not what was indexed"):
        read(tmp_path / "out")


def test_what_is_noticed_of_a_video_stands_in_the_index(tmp_path: Path) -> None:
    clips = (member("k0.cls", b"1"), member("k0.h264", b""), member("k0.mp4", CLIP[:-1] + b"x"))
    assert indexed(write(tmp_path / "in" / "t.tar", *clips), tmp_path / "out").num_samples() == 1
    assert "noticed" not in ShardReader(tmp_path / "out", Manifest.load(tmp_path / "out")).record(0, 0)
    again = rotated(CLIP)
    indexed(write(tmp_path / "in" / "t.tar", member("k0.cls", b"1"), member("k0.mp4", again)), tmp_path / "out")
    record = ShardReader(tmp_path / "out", Manifest.load(tmp_path / "out")).record(0, 0)
    assert [kind for kind, _ in record["noticed"]] == ["rotated"]


def rotated(content: bytes) -> bytes:
    """The same video, to be shown turned."""
    import av

    out = io.BytesIO()
    with av.open(io.BytesIO(content)) as source, av.open(out, "w", format="mp4") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        copy.set_display_rotation(90)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    return out.getvalue()


def test_an_index_is_kept_while_the_tar_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "in" / "t.tar", samples("k0", "k1"))
    first = indexed(path, tmp_path / "out")
    os.utime(path)
    monkeypatch.setattr("inflate3d.data.shards.tar_index.index_tar", None)  # a call would fail
    assert indexed(path, tmp_path / "out") == first


# ------------------------------------------------------------------------------------------------------- flipped bits


def flips(tmp_path: Path, name: str, count: int) -> Counter[str]:
    """Flip bits of a file one by one: every sample is as it was, or an InputError says what is wrong."""
    path = write(tmp_path / "in" / "t.tar", samples("k0", "k1"))
    output, draw, found = tmp_path / "in", random.Random(count), Counter[str]()
    indexed(path, output)
    whole, content = read(output), (output / name).read_bytes()
    for _ in range(count):
        hurt = bytearray(content)
        hurt[draw.randrange(len(hurt))] ^= 1 << draw.randrange(8)
        (output / name).write_bytes(hurt)
        try:
            is_same = read(output) == whole
        except InputError:
            found["refused"] += 1
        else:
            assert is_same, bytes(hurt)
            found["the same"] += 1
        assert check_shards(output), "a flip was not seen"
        if name.endswith(".tar"):
            found.update(reindexed(path, tmp_path / "again"))
    (output / name).write_bytes(content)
    assert check_shards(output) == []
    return found


def reindexed(tar: Path, output: Path) -> list[str]:
    """Index a damaged tar anew, as if it had been so from the start: only an InputError may come out, or samples."""
    shutil.rmtree(output, ignore_errors=True)
    try:
        indexed(tar, output, max_rejects=9)
        read_all = [ShardReader(output, Manifest.load(output)).sample(0, 0).decode()]
        return ["indexed"] * len(read_all)
    except (InputError, BrokenSample):
        return ["not indexed"]


@pytest.mark.parametrize("name", ["t.tar", "t.index.json"])
@pytest.mark.slow
@pytest.mark.parametrize("count", [8, pytest.param(1000, marks=pytest.mark.nightly)])
def test_every_flipped_bit_is_seen_and_none_is_a_traceback(tmp_path: Path, name: str, count: int) -> None:
    found = flips(tmp_path, name, count)
    assert found["refused"] + found["the same"] == count
    assert name.endswith(".tar") or found["the same"] == 0  # bytes that pad a tar hold nothing
