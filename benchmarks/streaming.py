"""Samples a second from local shards: this project's reader, plain WebDataset, litdata, mosaicml-streaming, a memcpy.

    pip install 'inflate3d[benchmark]' brotli python-snappy cramjam zstd
    pip install --no-deps mosaicml-streaming catalogue    (its pins clash)
    python benchmarks/streaming.py [--quick] [--workers 2] [--size "14 KB"] [--shard_mb 8]

Every reader holds the same volumes (uint8, 14 KB, 111 KB, 1.8 MB) in its own format, in the page cache, and gives them
in its random order. Readers take turns, round after round, and the median of the rounds counts: only ratios within one
run mean anything. With workers each gives batches of normalised float32 tensors of the same stage. Last, the same
shards through nginx on loopback (left out where it is not installed), against WebDataset's pipe:curl.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from inflate3d.contracts import AbstractDataset, Case, DatasetCard, InputSpec, RawSample
from inflate3d.data import Manifest, ShardReader, build_shards
from inflate3d.data.samples.views import make_stage
from inflate3d.data.shards.cache import ShardCache
from inflate3d.data.stream.batches import Source, TrainStream
from inflate3d.data.stream.mixture import Mixture
from inflate3d.data.stream.order import SampleOrder
from inflate3d.targets import ClassTarget
from torch.utils.data import DataLoader, default_collate

SIZES = {"14 KB": (24, 4000), "111 KB": (48, 1200), "1.8 MB": (121, 120)}
BATCH = 16
Reader = Callable[[], Iterator[Any]]


class Cubes(AbstractDataset):
    """Random cubes of one size."""

    def __init__(self, side: int, count: int) -> None:
        self.side, self.count = side, count

    @property
    def card(self) -> DatasetCard:
        fixed: dict[str, Any] = {"url": "", "licence": "CC0-1.0", "citation": "", "commercial_use": True}
        fixed |= {"weights_may_be_published": True, "input": InputSpec(("ct",))}
        return DatasetCard("cubes", "volume", "Cubes", "ct", targets={"label": ClassTarget(("a", "b"))}, **fixed)

    def cases(self) -> list[Case]:
        return [Case(f"cube_{i:06d}", "train", i) for i in range(self.count)]

    def read(self, case: Case) -> RawSample:
        cube = np.random.default_rng(case.source).integers(0, 256, (1, *[self.side] * 3), np.uint8)
        return RawSample(image=cube, targets={"label": case.source % 2})

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        return {}


def mosaic() -> Any:
    """Import mosaicml-streaming; of transformers, which its loader imports for three names, stand-ins do."""
    here = str(Path(__file__).parent.resolve())
    sys.path[:] = [p for p in sys.path if str(Path(p).resolve()) != here]  # this file has their package's name
    if "transformers" not in sys.modules:
        names = {"feature_extraction_utils": "BatchFeature", "tokenization_utils_base": "BatchEncoding"}
        names |= {"models.auto.tokenization_auto": "AutoTokenizer"}
        sys.modules["transformers"] = types.ModuleType("transformers")
        for module, name in names.items():
            stand_in = types.ModuleType(f"transformers.{module}")
            setattr(stand_in, name, type(name, (), {}))
            sys.modules[stand_in.__name__] = stand_in
    return importlib.import_module("streaming")


# ------------------------------------------------------------------------------------------------- the same samples


def write_all(folder: Path, side: int, count: int, shard_bytes: int) -> None:
    """Write the cubes as shards, as litdata chunks and as MDS."""
    from litdata.streaming.writer import BinaryWriter

    cubes = Cubes(side, count)
    build_shards(cubes, folder / "ours", progress=False, max_bytes_per_shard=shard_bytes)
    writer = BinaryWriter(str(folder / "litdata"), chunk_bytes=shard_bytes)
    columns = {"image": "ndarray", "label": "int", "key": "str"}
    with mosaic().MDSWriter(out=str(folder / "mds"), columns=columns, size_limit=shard_bytes) as mds:
        for i, case in enumerate(cubes.cases()):
            raw = cubes.read(case)
            sample = {"image": raw.image, "label": raw.targets["label"], "key": case.key}
            writer.add_item(i, sample)
            mds.write(sample)
    writer.done()
    writer.merge()


# ------------------------------------------------------------------------------------------- one process, one by one


def ours(folder: Path) -> Iterator[Any]:
    manifest = Manifest.load(folder / "ours")
    reader = ShardReader(folder / "ours", manifest, "train")
    order = SampleOrder([e.samples for e in reader.entries], seed=time.perf_counter_ns())
    for first in range(0, order.num_samples, 256):
        slots = order.slots(first, min(256, order.num_samples - first))
        for shard, number in zip(slots.shard.tolist(), slots.number.tolist(), strict=True):
            yield reader.sample(shard, number, borrow=True).decode()["image"]


def webdataset(folder: Path) -> Iterator[Any]:
    for sample in _webdataset(folder):
        yield sample["image.npy"]


def _webdataset(folder: Path) -> Any:
    urls = sorted(str(p) for p in (folder / "ours").glob("*.tar"))
    split = wds.split_by_worker
    return (
        wds.WebDataset(urls, shardshuffle=len(urls), workersplitter=split, empty_check=False)
        .shuffle(1000, initial=100)
        .decode()
    )


def litdata(folder: Path) -> Iterator[Any]:
    import litdata as lit

    for sample in lit.StreamingDataset(str(folder / "litdata"), shuffle=True):
        yield sample["image"]


def mosaicml(folder: Path) -> Iterator[Any]:
    mosaic().base.util.clean_stale_shared_memory()
    dataset = mosaic().StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=BATCH)
    for sample in dataset:
        yield sample["image"]


def memcpy(folder: Path) -> Iterator[Any]:
    """The same bytes, from the page cache into one buffer, in random order: nothing decoded, nothing checked."""
    manifest = Manifest.load(folder / "ours")
    reader = ShardReader(folder / "ours", manifest, "train")
    places = []
    for shard, entry in enumerate(reader.entries):
        for i in range(entry.samples):
            members = reader._indexes[shard].members(i)
            places.append((reader._file(shard).handle, members[0][1], members[-1][1] + members[-1][2] - members[0][1]))
    buffer = memoryview(bytearray(max(size for *_, size in places)))
    for n in np.random.default_rng().permutation(len(places)).tolist():
        handle, offset, size = places[n]
        os.preadv(handle, [buffer[:size]], offset)
        yield buffer


# ----------------------------------------------------------------------------------------- over HTTP, nginx on loopback


@contextmanager
def nginx(folder: Path) -> Iterator[str]:
    """Serve a folder; the address."""
    port = 20_000 + os.getpid() % 20_000
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
    )
    folder.chmod(0o755)
    user = ["-g", "user root;"] if os.getuid() == 0 else []
    server = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf"), *user], stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def ours_http(url: str, cache: Path) -> Iterator[Any]:
    manifest = Manifest.load(f"{url}/ours")
    reader = ShardReader(f"{url}/ours", manifest, "train", ShardCache(cache, 10**12))
    order = SampleOrder([e.samples for e in reader.entries], seed=time.perf_counter_ns(), window_shards=2)
    for first in range(0, order.num_samples, BATCH):
        soon = order.slots(first, min(8 * BATCH, order.num_samples - first)).shard.tolist()
        reader.prefetch(list(dict.fromkeys(soon)))
        slots = order.slots(first, min(BATCH, order.num_samples - first))
        for shard, number in zip(slots.shard.tolist(), slots.number.tolist(), strict=True):
            yield reader.sample(shard, number, borrow=True).decode()["image"]


def ours_cold(url: str) -> Iterator[Any]:
    with tempfile.TemporaryDirectory(prefix="cache-", ignore_cleanup_errors=True) as cache:
        yield from ours_http(url, Path(cache))


def pipe_curl(url: str) -> Iterator[Any]:
    names = [entry.file for entry in Manifest.load(f"{url}/ours").entries("train")]
    urls = [f"pipe:curl -s -f {url}/ours/{name}" for name in names]
    for sample in wds.WebDataset(urls, shardshuffle=len(urls), empty_check=False).shuffle(1000, initial=100).decode():
        yield sample["image.npy"]


def measure_http(title: str, folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Measure and show our reader with a cold and a warm cache, and WebDataset through curl; starting up counts."""
    if shutil.which("nginx") is None or shutil.which("curl") is None:
        print(f"\n{title}: over HTTP left out, nginx or curl is not installed")
        return {}
    with nginx(folder) as url, tempfile.TemporaryDirectory(prefix="cache-", ignore_cleanup_errors=True) as warm:
        readers: dict[str, Reader] = {
            "ours": partial(ours_cold, url),
            "ours, warm": partial(ours_http, url, Path(warm)),
            "pipe:curl": partial(pipe_curl, url),
        }
        rates = measure(readers, rounds, whole=True)
    show(f"{title} a sample, over nginx on loopback, ours with a cold cache", rates)
    print(f"  with a warm cache ours is {rates['ours, warm'] / rates['pipe:curl']:5.2f} times pipe:curl")
    return {f"{title}, nginx": rates}


# -------------------------------------------------------------------------------------- workers, batches of tensors


def _stage(folder: Path) -> Any:
    return make_stage(Manifest.load(folder / "ours").card, {}, training=True)


def _staged(stage: Any, key: str, image: Any, label: int) -> tuple[Any, int]:
    """Return a sample as our own readers make it."""
    return stage(key, {"image": image, "json": {"targets": {"label": label}}}, 0).views["image"], label


def _source(folder: Path) -> Source:
    manifest = Manifest.load(folder / "ours")
    order = SampleOrder([e.samples for e in manifest.entries("train")], seed=time.perf_counter_ns())
    reader = ShardReader(folder / "ours", manifest, "train")
    return Source("cubes", reader, order, _stage(folder), BATCH, 0)


def ours_batches(folder: Path, workers: int) -> Iterator[Any]:
    source = _source(folder)
    stream = TrainStream({"cubes": source}, Mixture({"cubes": 1}))
    loader: Any = DataLoader(stream, batch_size=None, num_workers=workers)
    for i, batch in enumerate(loader):
        yield batch.image
        if (i + 2) * BATCH > source.order.num_samples:
            return


def webdataset_batches(folder: Path, workers: int) -> Iterator[Any]:
    stage = _stage(folder)

    def staged(s: dict[str, Any]) -> tuple[Any, int]:
        return _staged(stage, s["__key__"], s["image.npy"], s["json"]["targets"]["label"])

    dataset = _webdataset(folder).map(staged).batched(BATCH, collation_fn=default_collate, partial=False)
    for images, _ in DataLoader(dataset, batch_size=None, num_workers=workers):
        yield images


def litdata_batches(folder: Path, workers: int) -> Iterator[Any]:
    import litdata as lit

    stage = _stage(folder)

    class Staged(lit.StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            s = super().__getitem__(index)
            image = s["image"].numpy() if isinstance(s["image"], torch.Tensor) else s["image"]
            return _staged(stage, s["key"], image, s["label"])

    dataset = Staged(str(folder / "litdata"), shuffle=True, drop_last=True)
    for images, _ in lit.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, drop_last=True):
        yield images


def mosaicml_batches(folder: Path, workers: int) -> Iterator[Any]:
    streaming, stage = mosaic(), _stage(folder)
    streaming.base.util.clean_stale_shared_memory()

    class Staged(streaming.StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            s = super().__getitem__(index)
            return _staged(stage, s["key"], s["image"], s["label"])

    dataset = Staged(local=str(folder / "mds"), shuffle=True, batch_size=BATCH)
    for images, _ in DataLoader(dataset, batch_size=BATCH, num_workers=workers, drop_last=True):
        yield images


# ------------------------------------------------------------------------------------------------------- the measure


def rate(reader: Iterator[Any], *, whole: bool = False) -> float:
    """Return items a second, after the first one: starting up counts only where the whole is asked for."""
    begin, count = time.perf_counter(), 0
    next(reader)
    if whole:
        count = 1
    else:
        begin = time.perf_counter()
    for _ in reader:
        count += 1
    return count / (time.perf_counter() - begin)


def measure(readers: dict[str, Reader], rounds: int, *, whole: bool = False) -> dict[str, float]:
    """Return the median rate of each reader; they take turns, and the first round warms the caches."""
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds + 1):
        for name, reader in readers.items():
            value = rate(reader(), whole=whole)
            if number:
                rates[name].append(value)
    return {name: statistics.median(values) for name, values in rates.items()}


def show(title: str, rates: dict[str, float], scale: int = 1) -> None:
    print(f"\n{title}")
    for name, value in rates.items():
        ratio = rates["ours"] / value
        print(f"  {name:<12} {value * scale:>10.0f} samples/s   ours is {ratio:5.2f} times that", flush=True)


def measure_size(title: str, folder: Path, workers: int, rounds: int) -> dict[str, dict[str, float]]:
    """Measure and show every reader on the samples of one size."""
    single = (ours, webdataset, litdata, mosaicml, memcpy)
    results = {title: measure({f.__name__: partial(f, folder) for f in single}, rounds)}
    show(f"{title} a sample, one process, random order", results[title])
    if workers:
        batched = (ours_batches, webdataset_batches, litdata_batches, mosaicml_batches)
        readers = {f.__name__.removesuffix("_batches"): partial(f, folder, workers) for f in batched}
        results[f"{title}, {workers} workers"] = rates = measure(readers, max(1, rounds // 2))
        show(f"{title} a sample, {workers} workers, batches of {BATCH}, staged", rates, BATCH)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the samples, one round")
    parser.add_argument("--workers", type=int, default=2, help="loading processes of the second part; 0 leaves it out")
    parser.add_argument("--size", choices=list(SIZES), help="only samples of this size")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shard_mb", type=int, default=8, help="size of a shard, chunk or MDS file; default 8")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for title, (side, count) in SIZES.items():
        if args.size not in (None, title):
            continue
        with tempfile.TemporaryDirectory(prefix="streaming-") as folder:
            write_all(Path(folder), side, count // 4 if args.quick else count, args.shard_mb * 2**20)
            rounds = 1 if args.quick else args.rounds
            results |= measure_size(title, Path(folder), args.workers, rounds)
            results |= measure_http(title, Path(folder), rounds)
    print("\n" + json.dumps(results))


if __name__ == "__main__":
    main()
