"""Shards of format 1, which named one of three kinds and its classes, are read as if they had been built today."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from inflate3d.contracts import DatasetCard
from inflate3d.data import Manifest, ShardReader, check_shards
from inflate3d.data.raw.videos import encode_video
from inflate3d.data.shards.tar_mapping import TarMapping
from inflate3d.errors import InputError
from inflate3d.targets import ClassTarget, MaskTarget
from inflate3d.training.datamodule import DataModule

VOXELS = np.arange(2 * 3 * 4, dtype=np.int16).reshape(1, 2, 3, 4)
MASK = (VOXELS[0] % 2).astype(np.uint8)
CLIP = encode_video(np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), np.uint8), fps=5)
PLACE = {"spacing_mm": [1.0, 1.0, 1.0], "affine": None, "group": None, "shape": [1, 2, 3, 4], "label": None}
KINDS: dict[str, Any] = {
    "volume_segmentation": ({"image.npy": VOXELS, "mask.npy": MASK}, {**PLACE, "label_voxels": [12, 12]}),
    "volume_classification": ({"image.npy": VOXELS}, {**PLACE, "label": 1}),
    "video_classification": (
        {"mp4": CLIP},
        {**PLACE, "label": 1, "num_frames": 4, "fps": 5.0, "shape": [3, 4, 16, 16]},
    ),
}
SAMPLE = {"video_classification": {"num_frames": 2, "crop_size": 8, "short_side": 8}}


def content(member: Any) -> bytes:
    if isinstance(member, bytes):
        return member
    file = io.BytesIO()
    np.save(file, member)
    return file.getvalue()


def write(folder: Path, kind: str) -> None:
    """Write two samples as the first format had them: by hand, with nothing of the platform's own writer."""
    folder.mkdir(parents=True)
    members, record = KINDS[kind]
    tar, samples = folder / "train-000000.tar", []
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as file:
        for key in ("a", "b"):
            places = []
            for suffix, member in {**members, "json": json.dumps(record).encode()}.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(stored := content(member))
                places.append([suffix, file.offset + 512, info.size, xxhash.xxh3_64_hexdigest(stored)])
                file.addfile(info, io.BytesIO(stored))
            samples.append([key, places])
    sha256 = hashlib.sha256(tar.read_bytes()).hexdigest()
    facts = {"bytes": tar.stat().st_size, "sha256": sha256}
    index = folder / "train-000000.index.json"
    whose = {"build": "", "cases": [0, 2], "rejects": []}
    index.write_text(json.dumps({"format": "inflate3d-index/1", "samples": samples, **facts, **whose}))
    entry = {"file": tar.name, "split": "train", "samples": 2, **facts, "index": index.name}
    entry["index_sha256"] = hashlib.sha256(index.read_bytes()).hexdigest()
    is_video = kind == "video_classification"
    intensity = {"mode": "window", "window": [0.0, 255.0], "mean": [0.5], "std": [0.5]}
    channels = ["red", "green", "blue"] if is_video else ["ct"]
    spec = {"channels": channels, "spacing_mm": None, "orientation": None, "intensity": intensity}
    said = {"name": "old", "kind": kind, "classes": ["x", "y"], "input": spec}
    rest = dict.fromkeys(("title", "modality", "url", "licence", "citation"), "")
    card = {**said, **rest, "commercial_use": True, "weights_may_be_published": True}
    statistics = {"samples_measured": 2, "class_samples": {"x": 2, "y": 2}}
    manifest = {"format": "inflate3d-shards/1", **said, "card": card, "statistics": statistics, "rejects": []}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "shards": [entry]}))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_the_first_format_are_read(kind: str, tmp_path: Path) -> None:
    write(tmp_path / "old", kind)
    manifest = Manifest.load(tmp_path / "old")
    is_mask = kind == "volume_segmentation"
    assert manifest.card.media == kind.partition("_")[0]
    assert dict(manifest.card.targets) == (
        {"mask": MaskTarget(("x", "y"))} if is_mask else {"label": ClassTarget(("x", "y"))}
    )
    assert check_shards(tmp_path / "old") == []
    decoded = ShardReader(tmp_path / "old", manifest).sample(0, 1).decode()
    assert bytes(decoded["video"]) == CLIP if "video" in decoded else np.array_equal(decoded["image"], VOXELS)
    data = DataModule(str(tmp_path), {"old": {"batch_size": 2, "sample": SAMPLE.get(kind, {})}}, seed=0)
    batch = next(iter(data.train_dataloader()))
    if is_mask:
        assert torch.equal(batch.targets["mask"], torch.from_numpy(np.stack([MASK, MASK])).long())
    else:
        assert batch.targets["label"].tolist() == [1, 1]


def test_a_manifest_of_the_first_format_tells_its_classes_and_is_written_anew(tmp_path: Path) -> None:
    write(tmp_path / "old", "volume_segmentation")
    manifest = Manifest.load(tmp_path / "old")
    assert manifest.statistics["targets"] == {"mask": {"class_samples": {"x": 2, "y": 2}}}
    manifest.save(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["format"] == "inflate3d-shards/2"
    assert Manifest.load(tmp_path) == manifest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"format": "inflate3d-shards/3"},
            "format is 'inflate3d-shards/3'.*reads 'inflate3d-shards/2' and 'inflate3d-sh",
        ),
        ({"format": None}, "this version reads 'inflate3d-shards/2' and 'inflate3d-shards/1'"),
        ({"classes": ["x", "z"]}, "'classes' differs from the card's"),
        ({"kind": "volume_classification"}, "'kind' differs from the card's"),
    ],
)
def test_an_unknown_or_edited_format_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write(tmp_path / "old", "volume_segmentation")
    path = tmp_path / "old" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=words):
        Manifest.load(tmp_path / "old")


def test_a_mapping_of_tars_may_still_name_kind_and_classes() -> None:
    said = {"name": "x", "modality": "ct", "licence": "MIT"}
    old = {"card": {**said, "kind": "volume_classification", "classes": ["a", "b"]}}
    new = {"card": {**said, "media": "volume", "targets": {"label": {"type": "class_label", "names": ["a", "b"]}}}}
    members = {"members": {"image": "npy", "label": "cls"}}
    assert TarMapping.from_dict(old | members) == TarMapping.from_dict(new | members)
    with pytest.raises(InputError, match="unknown kind 'segmentation'; close names: 'volume_segmentation'"):
        DatasetCard.from_dict({**said, "kind": "segmentation"})
