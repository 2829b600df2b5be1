"""Damaged and hostile shards: every fault is reported, nothing is executed, nothing but InputError is raised."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inflate3d.contracts import RawSample, Stage
from inflate3d.data import Manifest, ShardReader, build_shards, check_shards
from inflate3d.data.samples.views import make_stage
from inflate3d.data.shards.members import encode_sample
from inflate3d.data.shards.reader import RawMembers
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from nightly import nightly_but

KINDS = ("volume_segmentation", "volume_classification", "video_classification", "volume_targets")
OPTIONS: dict[str, dict[str, Any]] = {
    "volume_segmentation": {"patch_size": [8, 8, 8], "foreground": 0.9},
    "volume_classification": {},
    "video_classification": {"num_frames": 3, "crop_size": 8, "short_side": 8},
    "volume_targets": {"patch_size": [8, 8, 8]},
}
Files = dict[str, bytearray]


# ------------------------------------------------------------------------------------------------- damage to files


def flip(files: Files, name: str, draw: random.Random) -> None:
    files[name][draw.randrange(len(files[name]))] ^= 1 << draw.randrange(8)


def truncate(files: Files, name: str, draw: random.Random) -> None:
    borders = [i for i in range(0, len(files[name]), 512)]
    del files[name][draw.choice([draw.randrange(len(files[name])), draw.choice(borders)]) :]


def swap(files: Files, name: str, draw: random.Random) -> None:
    content, size = files[name], draw.randrange(1, 600)
    a, b = (draw.randrange(max(1, len(content) - size)) for _ in range(2))
    content[a : a + size], content[b : b + size] = content[b : b + size], content[a : a + size]


def overwrite(files: Files, name: str, draw: random.Random) -> None:
    start = draw.randrange(len(files[name]))
    files[name][start : start + draw.randrange(1, 2000)] = draw.randbytes(draw.randrange(1, 2000))


def remove(files: Files, name: str, draw: random.Random) -> None:
    del files[name]


def hostile_header(files: Files, name: str, draw: random.Random) -> None:
    """A member with a bad name, a link in its place, or a size of terabytes: with a right checksum."""
    tar = next(n for n in files if n.endswith(".tar"))
    with tarfile.open(fileobj=io.BytesIO(files[tar])) as opened:
        info = draw.choice(opened.getmembers())
    info.name = draw.choice(["../../evil", "/etc/evil", info.name, "a/../../b.json"])
    info.type = draw.choice([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
    info.linkname = "/etc/passwd" if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    info.size = draw.choice([info.size, 10**12, 0])
    files[tar][info.offset : info.offset + 512] = info.tobuf(tarfile.GNU_FORMAT)[:512]


def hostile_index(files: Files, name: str, draw: random.Random) -> None:
    """An index that lies, under its right hash in the manifest."""
    index_name = next(n for n in files if n.endswith(".index.json"))
    index = json.loads(files[index_name])
    member = draw.choice(draw.choice(index["samples"])[1])
    wrong = [-1, 10**13, 2**70, "x", None, True, 1.5, [], member[1] + 1]
    draw.choice(
        [
            lambda: member.__setitem__(draw.randrange(4), draw.choice(wrong)),
            lambda: index.update(samples=draw.choice([None, [], [["a"]], {}, 5])),
            lambda: index.update(bytes=draw.choice([10**13, -1, None, "many"])),
            lambda: index["samples"].reverse(),
            lambda: index.pop(draw.choice(list(index))),
        ]
    )()
    files[index_name] = bytearray(json.dumps(index).encode())
    manifest = json.loads(files["manifest.json"])
    manifest["shards"][0]["index_sha256"] = hashlib.sha256(files[index_name]).hexdigest()
    files["manifest.json"] = bytearray(json.dumps(manifest).encode())


def hostile_manifest(files: Files, name: str, draw: random.Random) -> None:
    manifest = json.loads(files["manifest.json"])
    key = draw.choice(["file", "index", "samples", "bytes", "sha256", "split"])
    manifest["shards"][0][key] = draw.choice([None, -1, 10**15, "../../etc/passwd", "/etc/passwd", [], {}, 0.5, ""])
    files["manifest.json"] = bytearray(json.dumps(manifest).encode())


DAMAGES: tuple[Callable[[Files, str, random.Random], None], ...] = (
    *(flip, flip, flip, truncate, swap, overwrite, remove),
    *(hostile_header, hostile_index, hostile_manifest),
)


def read_all(folder: Path, whole: dict[str, dict[str, bytes]]) -> int:
    """Read every sample; each must equal the original or raise InputError. Returns how many raised."""
    faults = 0
    reader = ShardReader(folder, Manifest.load(folder))
    for shard, entry in enumerate(reader.entries):
        for i in range(min(entry.samples, 50)):
            try:
                raw = reader.sample(shard, i, borrow=True)
                raw.decode()  # refuses members of unknown names
            except InputError:
                faults += 1
                continue
            assert {k: bytes(v) for k, v in raw.members.items()} == whole[raw.key]  # type: ignore[arg-type]
    return faults


def damage_files(folder: Path, count: int, seed: int) -> Counter[str]:
    found: Counter[str] = Counter()
    draw, damaged = random.Random(seed), folder / "damaged"
    originals = {}
    for kind in KINDS:
        toy = Toy(kind=kind, num_train=3, num_val=1, size=16, num_frames=4)
        build_shards(toy, folder / kind, progress=False)
        reader = ShardReader(folder / kind, Manifest.load(folder / kind))
        raw = [reader.sample(s, i) for s, e in enumerate(reader.entries) for i in range(e.samples)]
        originals[kind] = {r.key: {k: bytes(v) for k, v in r.members.items()} for r in raw}  # type: ignore[arg-type]
    for _ in range(count):
        kind, damage = draw.choice(KINDS), draw.choice(DAMAGES)
        before = {p.name: p.read_bytes() for p in (folder / kind).iterdir()}
        files = {name: bytearray(content) for name, content in before.items()}
        while files == before:
            full = [name for name, content in files.items() if content]
            damage(files, draw.choice([n for n in full if n.endswith(".tar")] * 4 + full), draw)
        shutil.rmtree(damaged, ignore_errors=True)
        damaged.mkdir()
        for name, content in files.items():
            (damaged / name).write_bytes(content)
        try:
            read_all(damaged, originals[kind])
            reported = bool(check_shards(damaged))
        except InputError:
            reported = True
        if not reported:  # a manifest or a re-signed index may change where it says nothing of the data: no fault
            changed = {n for n in before if before[n] != files.get(n)}
            is_report_gone = changed == {"noticed.jsonl"} and "noticed.jsonl" not in files  # earlier builds had none
            assert (
                is_report_gone
                or changed == {"manifest.json"}
                or (damage is hostile_index and not any(n.endswith("tar") for n in changed))
            )
            assert read_all(damaged, originals[kind]) == 0
        found[damage.__name__ + ("" if reported else ": harmless")] += 1
    return found


# --------------------------------------------------------------------------- hostile members under their right hashes


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def npy(head: str, body: bytes = b"") -> bytes:
    text = head.encode() + b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


def hostile(members: dict[str, bytes], draw: random.Random, mark: Path) -> bool:
    """Change the members in place; return whether the sample must be refused."""
    record = json.loads(members["json"])
    name = draw.choice([n for n in members if n != "json"])
    huge = draw.choice(
        ["(10000000000, 10, 10, 10)", "(1, 99999999, 99999999, 9)", "(-1, 2, 3, 4)", "(1.5,)", "('a',)", "()"]
    )
    kind = draw.randrange(9)
    if kind == 0:
        members[name] = pickle.dumps(Bomb(mark))
        members["pkl"] = pickle.dumps(Bomb(mark))
    elif kind == 1:
        file = io.BytesIO()
        np.save(file, np.array([Bomb(mark)], object), allow_pickle=True)
        members["image.npy"] = file.getvalue()
    elif kind == 2:
        members["image.npy"] = npy(f"{{'descr': '<i2', 'fortran_order': False, 'shape': {huge}, }}", bytes(100))
    elif kind == 3:
        members["image.npy"] = npy(
            draw.choice(["{}", "[" * 3000, "__import__('os')", "{'descr': '|O'}", "(" * 90, "\\x00"])
        )
    elif kind == 4:
        shape = draw.choice([(3,), (1, 2, 3), (2, 8, 8, 8), (0, 8, 8, 8), (1, 1, 1, 1, 1)])
        file = io.BytesIO()
        np.save(file, np.zeros(shape, draw.choice([np.int64, np.complex64, np.float64, np.bool_])))
        members["image.npy"] = file.getvalue()
        members.pop("image.b2nd", None)
        return "num_frames" not in record  # a video's sample has no use for it
    elif kind == 5:
        members["json"] = draw.choice(
            [b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b"5", b"", b'{"label": 1} {}', b"null"]
        )
    elif kind == 6:
        wrong = draw.choice(["x", -1, [1], {}, [[1, 2], [3]], 10**400, float("nan"), [0, 1, 1], "1e9"])
        keys = ["num_frames", "fps"] if "num_frames" in record else ["spacing_mm", "affine"]
        if record["targets"] and draw.random() < 0.5:
            record["targets"][draw.choice(list(record["targets"]))] = wrong
        elif record["targets"] and draw.random() < 0.3:
            record["targets"] = wrong or [wrong]  # {}: nothing is known of it, which may be
        else:
            record[draw.choice(keys)] = wrong
        members["json"] = json.dumps(record).encode()
    elif kind == 7 and "chunks" in record:
        table = record["chunks"][draw.choice(list(record["chunks"]))]
        place = draw.choice(table["places"])
        choices = [("shape", [10**7] * 4), ("chunk", [0, 0, 0]), ("dtype", "object"), ("places", []), ("chunk", "many")]
        key, value = draw.choice(choices)
        if draw.random() < 0.5:
            place[1], place[0] = draw.choice([(-5, 3), (10**12, 0), (40, 10**12), (64, "a"), ([], 3)])
        else:
            table[key] = value
        members["json"] = json.dumps(record).encode()
        return False  # a chunk that the crop does not touch is not looked at
    else:
        content = bytearray(members[name])
        for _ in range(draw.choice([1, 3, 100])):
            content[draw.randrange(len(content))] = draw.randrange(256)
        members[name] = bytes(content[: draw.randrange(len(content))] if draw.random() < 0.3 else content)
        return False  # other values may be as good
    return True


def attack_stages(folder: Path, count: int, seed: int) -> Counter[str]:
    found: Counter[str] = Counter()
    draw, mark = random.Random(seed), folder / "executed"
    sources: list[tuple[dict[str, bytes], Stage]] = []
    for kind in KINDS:
        toy = Toy(kind=kind, num_train=2, num_val=1, size=16, num_frames=5)
        raw, stage = toy.read(toy.cases()[0]), make_stage(toy.card, OPTIONS[kind], training=True)
        sources.append((encode_sample(raw, toy.card, key="a"), stage))
        if kind != "video_classification":
            sources.append((encode_sample(raw, toy.card, key="a", chunk_from=0), stage))
    for number in range(count):
        original, stage = draw.choice(sources)
        members = dict(original)
        must_fail = hostile(members, draw, mark)
        views: Any = {name: memoryview(content) for name, content in members.items()}
        try:
            stage("a", RawMembers("a", views).decode(), number)
            assert not must_fail, members["json"][:300]
            found["harmless"] += 1
        except ValueError:  # InputError, or ChunkError which the stream turns into one
            found["refused"] += 1
    assert not mark.exists(), "a pickle was executed"
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("files", "members"), nightly_but([(200, 300), (7000, 3000)], 1))
def test_all_damage_is_reported_and_nothing_crashes(tmp_path: Path, files: int, members: int) -> None:
    before = set(os.listdir(tmp_path.parent))
    damaged, attacked = damage_files(tmp_path, files, seed=files), attack_stages(tmp_path, members, seed=members)
    print(dict(damaged), dict(attacked))
    assert damaged.total() + attacked.total() == files + members
    assert sum(n for name, n in damaged.items() if "harmless" in name) <= files / 10
    assert attacked["refused"] > members / 2
    assert set(os.listdir(tmp_path.parent)) == before


@pytest.mark.parametrize("ending", [".tar", ".index.json"])
@pytest.mark.parametrize("kind", ["volume_segmentation", "video_classification"])
@pytest.mark.slow
@pytest.mark.parametrize("count", [10, pytest.param(1000, marks=pytest.mark.nightly)])
def test_every_flipped_bit_of_a_shard_is_seen(tmp_path: Path, kind: str, ending: str, count: int) -> None:
    build_shards(Toy(kind=kind, num_train=2, num_val=1, size=16, num_frames=4), tmp_path, progress=False)
    reader, draw = ShardReader(tmp_path, Manifest.load(tmp_path)), random.Random(count)
    raws = [reader.sample(shard, i) for shard, entry in enumerate(reader.entries) for i in range(entry.samples)]
    whole = {raw.key: {name: bytes(part) for name, part in raw.members.items()} for raw in raws}  # type: ignore[arg-type]
    (path,) = tmp_path.glob(f"train*{ending}")
    content = path.read_bytes()
    for _ in range(count):
        hurt = bytearray(content)
        hurt[draw.randrange(len(hurt))] ^= 1 << draw.randrange(8)
        path.write_bytes(hurt)
        assert check_shards(tmp_path), "not seen"
        try:
            assert read_all(tmp_path, whole) <= 2  # what is read is whole, or raised InputError
        except InputError:
            continue
    path.write_bytes(content)
    assert check_shards(tmp_path) == []


def test_a_video_with_fewer_frames_than_it_says_is_refused() -> None:
    toy = Toy(kind="video_classification", num_train=2, num_val=1, size=16, num_frames=8)
    members = encode_sample(toy.read(toy.cases()[0]), toy.card, key="a")
    record = json.loads(members["json"])
    members["json"] = json.dumps({**record, "num_frames": 500}).encode()
    stage = make_stage(toy.card, OPTIONS["video_classification"], training=False)
    with pytest.raises(InputError, match="frame"):
        stage("a", RawMembers("a", {k: memoryview(v) for k, v in members.items()}).decode(), 0)


def test_voxels_that_are_nan_are_refused_on_reading() -> None:
    toy = Toy(kind="volume_classification", num_train=2, num_val=1, size=16)
    good = RawSample(image=np.ones((1, 16, 16, 16), np.float32), targets={"label": 0}, spacing_mm=(1, 1, 1))
    members = encode_sample(good, toy.card, key="a")
    members["image.npy"] = members["image.npy"][:-4] + np.float32(np.nan).tobytes()
    with pytest.raises(InputError, match="NaN"):
        make_stage(toy.card, {}, training=False)(
            "a", RawMembers("a", {k: memoryview(v) for k, v in members.items()}).decode(), 0
        )
