"""CPU time of starting: create_model against timm's, a manifest of many shards, the indexes of a first batch.

    python benchmarks/start.py [--part nets|shards] [--nets resnet50,efficientnet_b0] [--rounds 5] [--shards 100000]

Nets have random weights. In one process ours and timm's take turns, after one round that does not count; in fresh ones
each is made once, imports apart, by one process a round, the layout being in a cache folder of the benchmark's own. The
median of the rounds' ratios counts. A manifest's memory is what the process holds more of once it is read.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FRESH = """
import sys, time, timm, torch, inflate3d
torch.set_num_threads(1)
make = {{"timm": timm.create_model, "ours": inflate3d.create_model}}[{which!r}]
start = time.process_time()
make({name!r})
print(time.process_time() - start)
"""


def cpu_s(call: Callable[[], Any]) -> float:
    """Return the CPU time of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def fresh(which: str, name: str) -> float:
    """Return the CPU time of one creation in a process of its own."""
    code = FRESH.format(which=which, name=name)
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)


def ratios(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> list[float]:
    """Return ours / theirs of each round, after one that does not count."""
    return [ours() / theirs() for _ in range(rounds + 1)][1:]


def compare_nets(names: list[str], rounds: int) -> None:
    """Print create_model's CPU time against timm's."""
    import inflate3d
    import timm
    import torch

    torch.set_num_threads(1)
    print("| create_model, random weights | ours / timm, one process | fresh processes |\n|---|---|---|", flush=True)
    for name in names:

        def ours(name: str = name) -> float:
            return cpu_s(lambda: inflate3d.create_model(name))

        def theirs(name: str = name) -> float:
            return cpu_s(lambda: timm.create_model(name))

        one = statistics.median(ratios(ours, theirs, rounds))
        new = statistics.median(ratios(lambda n=name: fresh("ours", n), lambda n=name: fresh("timm", n), rounds))  # type: ignore[misc]
        print(f"| {name} | {one:.2f} | {new:.2f} |", flush=True)


def measure_manifest(folder: Path, count: int) -> None:
    """Print the time and memory of a manifest of `count` shards, as a run that goes on reads it."""
    from inflate3d.contracts import DatasetCard, InputSpec
    from inflate3d.data.shards.manifest import Manifest, ShardEntry
    from inflate3d.data.shards.manifest_change import snapshot

    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    texts = dict(title="", url="", licence="", citation="", modality="rgb")
    card = DatasetCard(
        "x", "video", commercial_use=True, weights_may_be_published=True, input=InputSpec(("image",)), **texts
    )
    names = [f"train-{i:06d}" for i in range(count)]
    hashes = [(digest(name), digest(f"{name}i")) for name in names]
    shards = [
        ShardEntry(f"{name}.tar", "train", 2045, 10**9, of_tar, f"{name}.index.json", of_index)
        for name, (of_tar, of_index) in zip(names, hashes, strict=True)
    ]
    Manifest(card, shards).save(folder)
    code = (
        "import sys, time\nfrom inflate3d.data.shards.manifest import Manifest\nimport orjson\n"
        "held = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096 / 1e6\n"
        "before, start = held(), time.process_time()\nmanifest = Manifest.load(sys.argv[1])\n"
        "print(time.process_time() - start, held() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, check=True, text=True)
    load_s, held_mb = map(float, done.stdout.split())
    manifest = Manifest.load(folder)
    print(f"\n| {count} shards | |\n|---|---|\n| manifest, s | {load_s:.2f} |\n| held, MB | {held_mb:.0f} |")
    print(f"| what a checkpoint compares, s | {cpu_s(lambda: snapshot(manifest)):.2f} |", flush=True)


def measure_indexes() -> None:
    """Print the time of opening the 64 indexes that a first batch touches, of 2045 samples each (10^6 in 489)."""
    from inflate3d.data.shards.index import Member, PackedIndex, ShardIndex

    samples = [
        (
            f"class_{i % 400}/clip_{i:08d}",
            [Member("json", 10**6 * i, 300, "ab" * 8), Member("mp4", 10**6 * i + 812, 10**5, "cd" * 8)],
        )
        for i in range(2045)
    ]
    content = ShardIndex(samples, 10**6 * len(samples), "a" * 64).encoded
    spent = cpu_s(lambda: [PackedIndex(content, where="").sample(i) for i in range(64)])
    print(f"| indexes of a first batch of 64, s | {spent:.2f} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--part", choices=["all", "nets", "shards"], default="all")
    parser.add_argument("--nets", default="resnet50,efficientnet_b0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shards", type=int, default=100_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["INFLATE3D_CACHE"] = folder
        if args.part in ("all", "nets"):
            compare_nets(args.nets.split(","), args.rounds)
        if args.part in ("all", "shards"):
            measure_manifest(Path(folder), args.shards)
            measure_indexes()


if __name__ == "__main__":
    main()
