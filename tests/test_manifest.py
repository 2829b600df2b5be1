"""Manifest: comes back as it was saved, and says what is wrong with a folder or a file."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from inflate3d.contracts import SPLITS, DatasetCard, InputSpec, Intensity
from inflate3d.data.raw.split_rule import read_split_file
from inflate3d.data.shards.manifest import MANIFEST_FILE, Manifest, ShardEntry
from inflate3d.errors import InputError
from inflate3d.files import sealed
from inflate3d.targets import MaskTarget

CARD = DatasetCard(
    name="toy",
    media="volume",
    title="Toy",
    modality="ct",
    targets={"mask": MaskTarget(("background", "liver"))},
    url="https://example.org",
    licence="CC0-1.0",
    commercial_use=True,
    weights_may_be_published=True,
    citation="none",
    input=InputSpec(("ct",), (3.0, 1.0, 1.0), "RAS", Intensity("window", (-160.0, 240.0))),
)


def entry(split: str, number: int, samples: int) -> ShardEntry:
    stem = f"{split}-{number:06d}"
    return ShardEntry(f"{stem}.tar", split, samples, 10240, "a" * 64, f"{stem}.index.json", "b" * 64)


MANIFEST = Manifest(
    CARD,
    (entry("train", 0, 5), entry("train", 1, 3), entry("val", 0, 2)),
    ({"key": "x", "reason": "NaN"},),
    {"samples_measured": 8},
)


def edited(folder: Path, **changes: object) -> Path:
    path = MANIFEST.save(folder)
    path.write_bytes(sealed({**MANIFEST.to_dict(), **changes}))
    return folder


def test_a_saved_manifest_comes_back_equal(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    assert Manifest.load(tmp_path) == MANIFEST
    assert [p.name for p in tmp_path.iterdir()] == [MANIFEST_FILE]


def test_samples_and_shards_are_counted_by_split() -> None:
    assert [MANIFEST.num_samples(s) for s in ("train", "val", "test", None)] == [8, 2, 0, 10]
    assert [e.file for e in MANIFEST.entries("train")] == ["train-000000.tar", "train-000001.tar"]


def test_the_file_shows_media_targets_and_input_on_top(tmp_path: Path) -> None:
    data = json.loads(MANIFEST.save(tmp_path).read_text())
    assert data["format"] == "inflate3d-shards/2"
    assert (data["name"], data["media"]) == ("toy", "volume")
    assert data["targets"] == {"mask": {"type": "mask", "names": ["background", "liver"], "annotated": []}}
    assert data["input"]["spacing_mm"] == [3.0, 1.0, 1.0]
    assert data["rejects"] == [{"key": "x", "reason": "NaN"}]


def test_the_digest_follows_card_and_shards_alone() -> None:
    assert replace(MANIFEST, statistics={}, rejects=()).digest == MANIFEST.digest
    assert (
        replace(MANIFEST, card=replace(CARD, targets={"mask": MaskTarget(("background", "spleen"))})).digest
        != MANIFEST.digest
    )
    changed = replace(MANIFEST.shards[0], sha256="c" * 64)
    assert replace(MANIFEST, shards=(changed, *MANIFEST.shards[1:])).digest != MANIFEST.digest


def test_a_missing_folder_or_manifest_names_the_build_command(tmp_path: Path) -> None:
    for folder, words in ((tmp_path / "absent", "no such folder"), (tmp_path, "not finished")):
        with pytest.raises(InputError, match=words) as caught:
            Manifest.load(folder)
        assert f"platform shards build DATASET --root RAW --output {folder}" in str(caught.value)
        assert len(str(caught.value).splitlines()) <= 8


def test_a_damaged_or_edited_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text('{"format": ')
    with pytest.raises(InputError, match="not valid JSON"):
        Manifest.load(tmp_path)
    (tmp_path / MANIFEST_FILE).write_text("[]")
    with pytest.raises(InputError, match="it holds a list"):
        Manifest.load(tmp_path)
    with pytest.raises(InputError, match="this version reads 'inflate3d-shards/2' and 'inflate3d-shards/1'"):
        Manifest.load(edited(tmp_path, format="inflate3d-shards/9"))
    with pytest.raises(InputError, match="'targets' differs"):
        Manifest.load(edited(tmp_path, targets={"mask": {"type": "mask", "names": ["background", "kidney"]}}))
    with pytest.raises(InputError, match="key missing"):
        Manifest.load(edited(tmp_path, shards=[{"file": "a.tar"}]))


def test_a_manifest_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    for name in ("../other.tar", "/etc/passwd", "sub/train.tar", ".."):
        shards = [{**MANIFEST.to_dict()["shards"][0], "file": name}]
        with pytest.raises(InputError, match="no plain file name"):
            Manifest.load(edited(tmp_path, shards=shards))


def test_a_split_file_is_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text('{"val": ["c"], "train": ["a", "b"]}')
    assert read_split_file(path) == {"train": ["a", "b"], "val": ["c"]}
    for text, words in (
        ('{"train": ["a"], "val": ["a"]}', "'a' is in 'train' and in 'val'"),
        ('{"trian": ["a"]}', "'train'"),
        ('{"train": [1]}', "int"),
        ('["a"]', "expected"),
        ("{", "cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_split_file(path)


def test_many_shards_come_back_from_a_file_in_parts(tmp_path: Path) -> None:
    stems = [f"train-{i:06d}-\u00e4\u4e2d" for i in range(2500)]  # more than one part; names beyond ASCII
    entries = [
        ShardEntry(f"{s}.tar", SPLITS[i % 3], i, 10**9 + i, f"{i:064x}", f"{s}.index.json", f"{i + 7:064x}")
        for i, s in enumerate(stems)
    ]
    manifest = replace(MANIFEST, shards=entries)
    manifest.save(tmp_path)
    loaded = Manifest.load(tmp_path)
    assert list(loaded.shards) == entries
    assert list(loaded.entries("val")) == entries[1::3]
    assert loaded.entries("val").samples.tolist() == [e.samples for e in entries[1::3]]
    assert list(pickle.loads(pickle.dumps(loaded)).shards[-3:]) == entries[-3:]
    content = {"card": MANIFEST.card.to_dict(), "shards": [asdict(e) for e in entries]}
    expected = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    assert loaded.digest == manifest.digest == expected
