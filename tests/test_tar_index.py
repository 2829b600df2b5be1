"""Tars that others wrote: indexed without a change, read as shards are, and every wrong mapping answered."""

from __future__ import annotations

import copy
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
import yaml
from inflate3d.cli.main import main
from inflate3d.cli.shards import EXAMPLE
from inflate3d.data import BrokenSample, Manifest, ShardReader, check_shards
from inflate3d.data.raw.videos import encode_video
from inflate3d.data.shards.tar_index import find_tars, index_tars
from inflate3d.data.shards.tar_mapping import TarMapping
from inflate3d.errors import InputError
from inflate3d.training.datamodule import DataModule

MASK = {"type": "mask", "names": ["none", "liver"]}
CARD: dict[str, Any] = {"name": "organs", "media": "volume", "modality": "ct", "targets": {"mask": MASK}}
FIRST = {"name": "organs", "kind": "volume_segmentation", "modality": "ct", "classes": ["none", "liver"]}
SEGMENTATION: dict[str, Any] = {
    "card": {**CARD, "input": {"channels": ["ct"], "intensity": {"mode": "zscore"}}},
    "splits": {"train": "train-*.tar", "val": ["val-*.tar"]},
    "members": {"image": "npy", "mask": "seg.npy", "spacing_mm": "json:header.spacing"},
}


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def volume(i: int) -> dict[str, Any]:
    """A sample as somebody's script writes it: no channel axis, labels as int64, a note that nobody asked for."""
    image = np.random.default_rng(i).integers(-100, 900, (6, 8, 10)).astype(np.int16)
    mask = (image > 400).astype(np.int64)
    meta = {"header": {"spacing": [2.0, 1.0, 1.0 + i]}, "age": 40 + i}
    return {"npy": npy(image), "seg.npy": npy(mask), "json": json.dumps(meta).encode(), "note.txt": b"seen by hand"}


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    with wds.TarWriter(str(path), encoder=False) as writer:
        for key, members in samples.items():
            writer.write({"__key__": key, **members})


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    folder = tmp_path / "tars"
    folder.mkdir()
    for name, first in (("train-000", 0), ("train-001", 3), ("val-000", 6)):
        write_tar(folder / f"{name}.tar", {f"case{i:03d}": volume(i) for i in range(first, first + 3)})
    return folder


def indexed(tars: Path, output: Path, mapping: dict[str, Any] = SEGMENTATION, **options: Any) -> Manifest:
    return index_tars([str(tars)], TarMapping.from_dict(mapping), output, progress=False, **options)


def changed(path: str, value: Any, mapping: dict[str, Any] = SEGMENTATION) -> dict[str, Any]:
    """The mapping with one key, card.media or members.label, set to another value; None removes it."""
    result = copy.deepcopy(mapping)
    *above, last = path.split(".")
    at = result
    for name in above:
        at = at.setdefault(name, {})
    at[last] = value
    if value is None:
        del at[last]
    return result


def test_samples_are_read_from_tars_that_nobody_touched(tars: Path, tmp_path: Path) -> None:
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tars.iterdir()}
    manifest = indexed(tars, tmp_path / "out" / "organs")
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tars.iterdir()} == before
    assert [(e.file, e.split, e.samples) for e in manifest.shards] == [
        ("train-000.tar", "train", 3),
        ("train-001.tar", "train", 3),
        ("val-000.tar", "val", 3),
    ]
    assert Manifest.load(tmp_path / "out" / "organs").digest == manifest.digest
    reader = ShardReader(tmp_path / "out" / "organs", manifest)
    for shard in range(3):
        for i in range(3):
            number, raw = 3 * shard + i, reader.sample(shard, i)
            decoded, stored = raw.decode(), volume(number)
            assert raw.key == f"case{number:03d}"
            assert np.array_equal(decoded["image"][0], np.load(io.BytesIO(stored["npy"])))
            assert np.array_equal(decoded["mask"], np.load(io.BytesIO(stored["seg.npy"])))
            assert decoded["mask"].dtype == np.uint8
            assert decoded["json"]["spacing_mm"] == [2.0, 1.0, 1.0 + number]
            assert decoded["json"]["measured"]["mask"][1] == int(decoded["mask"].sum())
    assert manifest.statistics["spacing_mm"]["max"] == [2.0, 1.0, 6.0]
    assert manifest.statistics["targets"]["mask"]["class_samples"] == {"none": 6, "liver": 6}
    assert check_shards(tmp_path / "out" / "organs") == []


def test_indexed_tars_train_as_shards_do(tars: Path, tmp_path: Path) -> None:
    indexed(tars, tmp_path / "out" / "organs")
    data = DataModule(str(tmp_path / "out"), {"organs": {"batch_size": 2, "sample": {"patch_size": [4, 4, 4]}}}, seed=1)
    batches = [batch for batch, _ in zip(data.train_dataloader(), range(3), strict=False)]
    assert sorted(key for b in batches for key in b.keys) == [f"case{i:03d}" for i in range(6)]
    assert batches[0].image.shape == (2, 1, 4, 4, 4)
    assert sum(len(b) for b in data.val_dataloader()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_index_comes_out_again_and_what_is_there_is_kept(tars: Path, tmp_path: Path, workers: int) -> None:
    first = indexed(tars, tmp_path / "a")
    second = indexed(tars, tmp_path / "b", num_workers=workers)
    assert first == second
    path = tmp_path / "b" / "train-001.index.json"
    path.unlink()  # as a killed run leaves it
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "b").glob("*.index.json")}
    assert indexed(tars, tmp_path / "b") == first
    assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()
    assert len(times) == 2
    indexed(tars, tmp_path / "b", changed("card.targets.mask.names", ["none", "spleen"]))
    assert Manifest.load(tmp_path / "b").card.targets["mask"].names == ("none", "spleen")


def test_the_index_may_lie_beside_the_tars(tars: Path) -> None:
    assert indexed(tars, tars).tars is None
    assert check_shards(tars) == []


def test_videos_and_labels_by_name_number_or_field(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), np.uint8)
    clip = encode_video(frames, fps=5)
    labels = {"a": b"run\n", "b": b"0"}
    write_tar(tmp_path / "clips.tar", {f"x/{k}": {"mp4": clip, "cls": label} for k, label in labels.items()})
    mapping = yaml.safe_load(EXAMPLE)
    mapping["splits"] = {}
    manifest = index_tars([str(tmp_path / "clips.tar")], TarMapping.from_dict(mapping), tmp_path / "out")
    reader = ShardReader(tmp_path / "out", manifest)
    assert [reader.record(0, i)["targets"]["label"] for i in (0, 1)] == [1, 0]
    assert reader.keys(0) == ["x_a", "x_b"]
    assert bytes(reader.sample(0, 1).decode()["video"]) == clip
    assert reader.record(0, 0)["num_frames"] == 5


def test_a_mapping_is_read_back_as_it_was_written() -> None:
    for values in (SEGMENTATION, yaml.safe_load(EXAMPLE)):
        mapping = TarMapping.from_dict(values)
        assert TarMapping.from_dict(json.loads(json.dumps(mapping.to_dict()))) == mapping


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("cards", {}, "unknown key 'cards'; close names: 'card'"),
        ("card", None, "card is None; expected keys below it"),
        ("card.media", "volumes", "card.media: unknown medium 'volumes'; close names: 'volume'"),
        ("card.media", None, "card.media is None; expected a text"),
        (
            "card",
            {**FIRST, "kind": "segmentation"},
            "card: unknown kind 'segmentation'; close names: 'volume_segmentat",
        ),
        ("card", {**FIRST, "classes": ["liver"]}, "card.classes is .* at least two different names"),
        ("card.targets", ["mask"], r"card.targets is \['mask'\]; expected NAME: \{type: ..., ...\} for each"),
        ("card.targets.mask", "organ", "card.targets.mask is 'organ'; expected .* with a type of class_label, mask"),
        ("card.targets.mask.names", ["liver"], "card.targets.mask.names is .* at least two different names"),
        ("card.targets.mask.type", "masks", "card: targets.mask: unknown target type 'masks'; close names: 'mask'"),
        ("card.targets.mask.annotated", ["kidney"], "card: targets.mask: annotated: unknown class 'kidney'"),
        ("card.targets.mask.organs", [], r"card: targets.mask: unknown keys \['organs'\]"),
        ("card.licens", "MIT", "unknown key 'licens'; close names: 'licence'"),
        ("card.input.spacing_mm", [1, 2], r"card.input.spacing_mm is \[1, 2\]; expected \[z, y, x\]"),
        ("card.input.intensity", {"mode": "minmax"}, "intensity.mode is 'minmax'; allowed: window, zscore"),
        ("card.input.intensity", {"std": [0]}, "std must be above 0"),
        ("card.input.orientation", "up", "orientation is 'up'; expected three letters such as RAS"),
        ("card.input.channels", [], r"channels is \[\]"),
        ("members.mask", None, "members: mask missing; needed: image, mask"),
        ("members.label", "cls", r"members \(of volume with mask\): unknown key 'label'"),
        ("members.image", "nii.gz", "members.image is 'nii.gz'; allowed: a member that ends in npy"),
        ("members.image", 3, "members.image is 3; expected what follows the first dot"),
        ("members.spacing_mm", "json", "members.spacing_mm is 'json'; expected a field of a JSON member"),
        ("splits.training", "a", "unknown split 'training'; close names: 'train'"),
        ("splits.train", 3, "splits.train is 3; expected a pattern such as train-"),
        ("prefix_keys", "yes", "prefix_keys is 'yes'; allowed: true, false"),
    ],
)
def test_a_wrong_mapping_is_refused_before_any_tar_is_read(path: str, value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        TarMapping.from_dict(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (
            "members.image",
            "img.npy",
            r"members.image is 'img.npy': no sample of .*000.tar has it. It holds .*npy \(3\), seg.npy",
        ),
        ("members.mask", "sg.npy", "is 'seg.npy' meant?"),
        ("members.spacing_mm", "json:spacing", r"case000: .json has no field 'spacing'; it has: header, age"),
        ("splits.train", "t-*.tar", "splits: train-000.tar is in no split"),
        ("splits.train", "*.tar", "val-000.tar is in train and val"),
        ("card.input.channels", ["t1", "t2"], "case000.*image has 1 channels; the card states"),
        ("card.input.spacing_mm", [5, 5, 5], "case000.*spacing_mm is .*the card states"),
    ],
)
def test_a_mapping_that_does_not_fit_the_tars_is_refused(
    tars: Path, tmp_path: Path, path: str, value: Any, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        indexed(tars, tmp_path / "out", changed(path, value))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_broken_samples_are_rejects(tars: Path, tmp_path: Path) -> None:
    fine = volume(0)
    broken: dict[str, dict[str, bytes]] = {
        "a": {**fine, "seg.npy": npy(np.full((6, 8, 10), 7))},
        "b": {**fine, "npy": npy(np.full((6, 8, 10), np.nan))},
        "c": {**fine, "npy": fine["npy"][:-1]},
        "d": {**fine, "json": b"{"},
        "e": {k: v for k, v in fine.items() if k != "seg.npy"},
        "f": {**fine, "seg.npy": npy(np.full((6, 8, 10), 999))},
        "g": {**fine, "npy": b"\x80\x04 a pickle, not an array"},
    }
    write_tar(tars / "train-002.tar", {"fine": fine, **broken})
    with pytest.raises(InputError, match="7 cases rejected, allowed: 0"):
        indexed(tars, tmp_path / "out")
    manifest = indexed(tars, tmp_path / "out", max_rejects=7)
    assert manifest.num_samples("train") == 7
    words = {"a": "mask holds label 7", "b": "NaN", "c": "follow", "d": "json|Expecting", "e": "no member .seg.npy"}
    words |= {"f": "mask holds labels from 999", "g": "npy"}
    reasons = {r["key"]: r["reason"] for r in manifest.rejects}
    for key, word in words.items():
        assert any(w in reasons[key] for w in word.split("|")), reasons[key]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 512 * 6])


def cut_at_a_member(path: Path) -> None:
    with tarfile.open(path) as tar:
        end = tar.getmembers()[4].offset
    path.write_bytes(path.read_bytes()[:end])


def damage_a_header(path: Path) -> None:
    with tarfile.open(path) as tar:
        at = tar.getmembers()[4].offset
    content = bytearray(path.read_bytes())
    content[at + 5] ^= 1
    path.write_bytes(content)


def add(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"x") -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with tarfile.open(path, "a") as tar:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(content))

    return damage


def pack(path: Path) -> None:
    import gzip

    path.write_bytes(gzip.compress(path.read_bytes()))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "not a readable tar|cut short"),
        (cut_at_a_member, "cut short"),
        (damage_a_header, "damaged header at byte"),
        (add("../evil.npy"), "'../evil.npy' is a name outside the folder"),
        (add("/etc/evil.npy"), "'/etc/evil.npy' is a name outside the folder"),
        (add("case.npy", tarfile.SYMTYPE), "'case.npy' is no plain file"),
        (add("case000.npy"), "the members of 'case000' do not follow each other"),
        (add("case002.npy"), "'case002.npy' stands twice"),
        (pack, "it is compressed, which has no random access: unpack it"),
        (lambda path: path.write_bytes(b""), "not a readable tar"),
        (lambda path: path.write_bytes(bytes(10240)), "holds no member"),
    ],
)
def test_damaged_and_hostile_tars_are_refused(
    tars: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(tars / "train-000.tar")
    with pytest.raises(InputError, match=rf"train-000.*({words})|({words}).*train-000"):
        indexed(tars, tmp_path / "out")
    assert not (tmp_path / "evil.npy").exists()


def test_keys_that_repeat_are_told_apart_by_their_tar(tars: Path, tmp_path: Path) -> None:
    write_tar(tars / "train-002.tar", {"case000": volume(0)})
    with pytest.raises(InputError, match=r"key 'case000' is in train-000.tar and in train-002.tar.*prefix_keys: true"):
        indexed(tars, tmp_path / "out")
    manifest = indexed(tars, tmp_path / "out", changed("prefix_keys", True))
    assert ShardReader(tmp_path / "out", manifest).keys(2) == ["train-002_case000"]


def test_a_tar_that_changed_since_is_found(tars: Path, tmp_path: Path) -> None:
    manifest = indexed(tars, tmp_path / "out")
    path = tars / "train-000.tar"
    content = bytearray(path.read_bytes())
    content[content.index(b"NUMPY") + 300] ^= 1
    path.write_bytes(content)
    assert [f for f in check_shards(tmp_path / "out") if "train-000.tar: differs from what was indexed" in f]
    with pytest.raises(BrokenSample, match=r"train-000.tar: case000.image.npy differs"):
        ShardReader(tmp_path / "out", manifest).sample(0, 0)
    path.unlink()
    assert any("No such file" in fault for fault in check_shards(tmp_path / "out"))


def test_a_manifest_from_the_net_must_not_name_local_tars(tars: Path, tmp_path: Path) -> None:
    manifest = indexed(tars, tmp_path / "out").to_dict()
    with pytest.raises(InputError, match=r"its tars lie in the local folder .*index them by their own address"):
        Manifest.from_dict(manifest, where="https://host/organs/manifest.json")


def test_tars_are_found_by_folder_pattern_and_braces(tars: Path) -> None:
    names = ["train-000.tar", "train-001.tar"]
    assert find_tars([f"{tars}/train-*.tar"]) == (str(tars), names)
    assert find_tars([f"{tars}/train-{{000..001}}.tar"]) == (str(tars), names)
    assert find_tars([f"{tars}/{{train,val}}-000.tar"]) == (str(tars), ["train-000.tar", "val-000.tar"])
    assert find_tars(["s3://bucket/set/x-{8..11}.tar"])[1] == ["x-10.tar", "x-11.tar", "x-8.tar", "x-9.tar"]
    with pytest.raises(InputError, match="a web server lists no files"):
        find_tars(["https://host/set/*.tar"])
    with pytest.raises(InputError, match="no such file"):
        find_tars([f"{tars}/absent.tar"])
    with pytest.raises(InputError, match="no tar in"):
        find_tars([f"{tars}/absent-*.tar"])
    with pytest.raises(InputError, match="several folders"):
        find_tars(["s3://a/x.tar", "s3://b/x.tar"])


def test_the_command_indexes_checks_and_describes(tars: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(SEGMENTATION))
    output = str(tmp_path / "out")
    command = ["shards", "index", str(tars), "--output", output, "--num_workers", "0", "--mapping"]
    assert main([*command, str(tmp_path / "map.yaml")]) == 0
    assert main(["shards", "check", output]) == 0
    assert main(["shards", "info", output]) == 0
    assert "9 samples in 3 shards" in capsys.readouterr().out
    assert main([*command, str(tmp_path / "absent.yaml")]) == 2
    assert "An example: platform shards index --help" in capsys.readouterr().err
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(changed("members.image", "imge")))
    assert main([*command, str(tmp_path / "map.yaml")]) == 2
    assert "map.yaml: members.image is 'imge'" in capsys.readouterr().err
