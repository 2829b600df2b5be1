"""Streams of batches: the same for every number of workers and ranks, from any position, past broken samples."""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inflate3d.contracts import AbstractDataset, Case, DatasetCard, RawSample
from inflate3d.data.samples.views import make_stage
from inflate3d.data.shards.manifest import Manifest
from inflate3d.data.shards.reader import ShardReader
from inflate3d.data.shards.writer import build_shards
from inflate3d.data.stream.batches import EvalStream, Source, TrainStream
from inflate3d.data.stream.mixture import Mixture
from inflate3d.data.stream.order import SampleOrder
from inflate3d.data.stream.stream_error import StreamError
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.sample import IMAGE, Batch
from nightly import slow_but
from torch.utils.data import DataLoader

SAMPLE: dict[str, dict[str, Any]] = {"blobs": {"patch_size": [8, 12, 16]}, "shapes": {"size": [16, 16, 16]}}
BATCH_SIZE = {"blobs": 4, "shapes": 8}
AUGMENT = [
    {"class_path": "RandomFlip", "init_args": {"axes": [0, 1, 2]}},
    {"class_path": "RandomAffine"},
    {"class_path": "RandomNoise", "init_args": {"std": [0, 0.2]}},
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of two kinds, a few samples each."""
    root = tmp_path_factory.mktemp("shards")
    for name, kind in (("blobs", "volume_segmentation"), ("shapes", "volume_classification")):
        toy = Toy(kind=kind, num_train=22, num_val=7, size=16)
        build_shards(toy, root / name, max_samples_per_shard=5, progress=False)
    return root


def source(
    root: Path, name: str, split: str = "train", *, batch_size: int | None = None, max_broken: int = 0
) -> Source:
    manifest = Manifest.load(root / name)
    training = split == "train"
    return Source(
        name=name,
        reader=ShardReader(root / name, manifest, split),
        order=SampleOrder([e.samples for e in manifest.entries(split)], seed=7, window_shards=2),
        stage=make_stage(manifest.card, SAMPLE[name], training=training, augment=AUGMENT),
        batch_size=batch_size or BATCH_SIZE[name],
        max_broken=max_broken,
    )


def stream(root: Path, **place: int) -> TrainStream:
    sources = {name: source(root, name) for name in SAMPLE}
    return TrainStream(sources, Mixture({"blobs": 2, "shapes": 1}), **place)


def take(stream: TrainStream, count: int, workers: int = 0) -> list[Batch]:
    loader: DataLoader[Batch] = DataLoader(stream, batch_size=None, num_workers=workers)
    return list(islice(loader, count))


def joined(parts: tuple[Batch, ...]) -> tuple[str, list[str], torch.Tensor, *tuple[torch.Tensor, ...]]:
    keys = [key for part in parts for key in part.keys]
    targets = [torch.cat([p.targets[name] for p in parts]) for name in parts[0].targets]
    return parts[0].dataset, keys, torch.cat([p.image for p in parts]), *targets


def assert_same(a: tuple[Any, ...], b: tuple[Any, ...]) -> None:
    assert a[:2] == b[:2]
    assert len(a) == len(b) == 4
    assert all(torch.equal(x, y) for x, y in zip(a[2:], b[2:], strict=True))


# --------------------------------------------------------------------------------------------------------- the order


@pytest.mark.slow
@pytest.mark.parametrize("workers", slow_but([2, 1], 1))
def test_batches_are_bitwise_the_same_with_workers(root, workers):
    for alone, shared in zip(take(stream(root), 9), take(stream(root), 9, workers), strict=True):
        assert_same(joined((alone,)), joined((shared,)))
        assert alone.micro_batch == shared.micro_batch


@pytest.mark.parametrize("world_size", slow_but([2, 4], 1))
def test_ranks_share_out_the_same_global_batches(root, world_size):
    ranks = [take(stream(root, rank=r, world_size=world_size), 9) for r in range(world_size)]
    for alone, *parts in zip(take(stream(root), 9), *ranks, strict=True):
        assert_same(joined((alone,)), joined(tuple(parts)))
        assert {len(p) for p in parts} == {len(alone) // world_size}


@pytest.mark.parametrize(("start", "workers"), slow_but([(4, 1), (1, 0), (11, 2), (30, 2)], 1))
def test_a_stream_goes_on_at_any_integer(root, start, workers):
    whole = take(stream(root), start + 5)
    for before, after in zip(whole[start:], take(stream(root, start=start), 5, workers), strict=True):
        assert_same(joined((before,)), joined((after,)))
        assert before.micro_batch == after.micro_batch


@pytest.mark.slow
def test_every_sample_comes_once_an_epoch_and_batches_cross_its_end(root):
    keys = [key for b in take(stream(root), 3 * 11) if b.dataset == "shapes" for key in b.keys]
    assert len(keys) == 88
    for epoch in range(4):
        assert sorted(keys[22 * epoch : 22 * (epoch + 1)]) == [f"train_{i:04d}" for i in range(22)]


def test_a_sample_is_drawn_anew_each_epoch(root):
    order = source(root, "shapes")
    seen = [order.sample(epoch, 0, 0, 0).views[IMAGE] for epoch in range(3)]
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], source(root, "shapes").sample(0, 9, 0, 0).views[IMAGE])


def test_a_batch_says_what_it_is(root):
    batch = stream(root).batch(1)
    assert (batch.dataset, batch.micro_batch) == ("shapes", 1)
    assert (batch.image.shape, batch.image.dtype) == ((8, 1, 16, 16, 16), torch.float32)
    assert (batch.targets["label"].shape, batch.targets["label"].dtype) == ((8,), torch.int64)
    assert batch.spacing_mm.shape == (8, 3)
    blobs = stream(root).batch(0)
    assert (blobs.targets["mask"].shape, blobs.targets["mask"].dtype) == ((4, 8, 12, 16), torch.int64)


@pytest.mark.parametrize("augment", [None, AUGMENT], ids=["plain", "augmented"])
@pytest.mark.parametrize("name", list(SAMPLE))
def test_a_batch_holds_what_each_sample_is_by_itself(root, name, augment):
    one = source(root, name)
    one.stage = make_stage(Manifest.load(root / name).card, SAMPLE[name], training=True, augment=augment)
    batch = TrainStream({name: one}, Mixture({name: 1})).batch(1)
    slots = one.order.slots(one.batch_size, one.batch_size)
    alone = [one.sample(*(int(n) for n in slot)) for slot in zip(*slots, strict=True)]
    assert torch.equal(batch.image, torch.stack([sample.views[IMAGE] for sample in alone]))
    assert batch.keys == [sample.key for sample in alone]


def test_a_stream_pickles(root):
    assert_same(joined((pickle.loads(pickle.dumps(stream(root))).batch(2),)), joined((stream(root).batch(2),)))


def test_a_batch_that_ranks_cannot_share_is_refused(root):
    with pytest.raises(InputError, match=r"datasets.blobs.batch_size is 4.*multiple of 3"):
        stream(root, world_size=3)


# --------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (2, 0), (3, 1)])
def test_evaluation_gives_each_sample_once_over_all_ranks(root, world_size, workers):
    seen: Counter[tuple[str, str]] = Counter()
    for rank in range(world_size):
        sources = {name: source(root, name, "val", batch_size=2) for name in SAMPLE}
        evaluation = EvalStream(sources, rank=rank, world_size=world_size)
        batches = list(DataLoader(evaluation, batch_size=None, num_workers=workers))
        assert len(batches) == len(evaluation)
        seen.update((b.dataset, key) for b in batches for key in b.keys)
    assert seen == Counter((name, f"val_{i:04d}") for name in SAMPLE for i in range(7))


def test_an_evaluation_of_fewer_batches_than_ranks_is_refused(root):
    sources = {"shapes": source(root, "shapes", "val", batch_size=2)}
    EvalStream(sources, rank=3, world_size=4)
    with pytest.raises(InputError, match=r"4 batches to evaluate \(shapes\), 5 ranks: each needs one"):
        EvalStream(sources, rank=0, world_size=5)


def test_evaluation_takes_evenly_spaced_samples(root):
    sources = {"shapes": source(root, "shapes", "val")}
    batches = list(DataLoader(EvalStream(sources, max_samples={"shapes": 3}), batch_size=None))
    assert [key for b in batches for key in b.keys] == ["val_0000", "val_0002", "val_0004"]
    assert batches[0].micro_batch == -1


# ---------------------------------------------------------------------------------------------------- broken samples


def flip_a_bit(folder: Path, split: str, number: int) -> str:
    """Damage one sample of the first shard of a split; return its key."""
    manifest = Manifest.load(folder)
    entry = manifest.entries(split)[0]
    reader = ShardReader(folder, manifest, split)
    key, (member, *_) = reader.keys(0)[number], reader._indexes[0].members(number)
    path = folder / entry.file
    content = bytearray(path.read_bytes())
    content[member[1] + member[2] - 1] ^= 1
    path.write_bytes(content)
    return key


@pytest.fixture
def broken(tmp_path: Path) -> tuple[Path, str]:
    build_shards(
        Toy(kind="volume_classification", num_train=22, num_val=7, size=16), tmp_path / "shapes", progress=False
    )
    return tmp_path, flip_a_bit(tmp_path / "shapes", "train", 3)


def one(root: Path, **options: Any) -> TrainStream:
    return TrainStream({"shapes": source(root, "shapes", **options)}, Mixture({"shapes": 1}))


@pytest.mark.slow
def test_a_broken_sample_is_replaced_in_its_slot_and_nowhere_else(broken, root, caplog):
    folder, key = broken
    with caplog.at_level(logging.WARNING):
        damaged = take(one(folder, max_broken=1), 6)
    whole = take(one(folder, max_broken=1), 6, workers=2)
    keys = [k for b in damaged for k in b.keys]
    assert keys == [k for b in whole for k in b.keys]
    assert key not in keys
    build_shards(Toy(kind="volume_classification", num_train=22, num_val=7, size=16), folder / "w", progress=False)
    (folder / "shapes").rename(folder / "damaged")
    (folder / "w").rename(folder / "shapes")
    expected = [k for b in take(one(folder), 6) for k in b.keys]
    different = [a for a, b in zip(expected, keys, strict=True) if a != b]
    assert set(different) == {key}
    assert [key in r.message for r in caplog.records] == [True]  # named once, though it was met in two epochs


@pytest.mark.parametrize("workers", [0, 1])
def test_past_the_budget_the_stream_ends_with_one_message(broken, workers):
    folder, key = broken
    second = flip_a_bit(folder / "shapes", "train", 4)
    with pytest.raises(StreamError, match="2 broken samples of 22, more than the 1 allowed") as caught:
        take(one(folder, max_broken=1), 6, workers)
    assert isinstance(caught.value, InputError)
    assert str(caught.value).startswith("dataset 'shapes': ")
    assert any(k in str(caught.value) for k in (key, second))
    assert "Traceback" not in str(caught.value)


@pytest.mark.slow
def test_a_set_of_which_nothing_is_whole_is_an_error_whatever_the_budget(broken):
    folder, _ = broken
    for tar in (folder / "shapes").glob("train-*.tar"):
        tar.unlink()
    with pytest.raises(StreamError, match="22 broken samples of 22, more than the 21 allowed"):
        take(one(folder, max_broken=100), 6)


class ToyShapes(AbstractDataset):
    """Volumes of three different shapes."""

    @property
    def card(self) -> DatasetCard:
        return Toy(kind="volume_classification").card

    def cases(self) -> list[Case]:
        return [Case(f"case_{i}", "train", i) for i in range(3)]

    def read(self, case: Case) -> RawSample:
        return RawSample(image=np.zeros((1, 8, 8, 8 + case.source), np.uint8), targets={"label": 0})

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        return {}


@pytest.mark.slow
def test_samples_of_unlike_shape_do_not_make_a_batch(tmp_path, monkeypatch):
    build_shards(ToyShapes(), tmp_path / "shapes", progress=False)
    monkeypatch.setitem(SAMPLE, "shapes", {})
    with pytest.raises(
        InputError, match=r"image of sample 'case_.' is \(1, 8, 8, .*Set data.datasets.shapes.sample.size"
    ):
        one(tmp_path).batch(0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
