"""Real processes in a process group: a mixture goes on exactly for any world size, workers and stop point."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from warm_process import WarmProcess

STOPS = (0, 1, 4, 7, 22)  # of micro-batches; 22 lies in the second epoch of every set
BATCHES = 6

# One rank: for each number of workers and stop, the batches that its loader gives. Keys carry augmentation's seed.
RANK = """
import hashlib, json, os, sys
from itertools import islice
import torch
import torch.distributed as dist
from dataclasses import replace
from inflate3d.training.datamodule import DataModule

class Noting:
    def __init__(self, stage):
        self.stage = stage
    def __call__(self, key, members, seed, out):
        return replace(self.stage(key, members, seed, out), key=f"{key}:{seed:016x}")

def digest(tensor):
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()

def samples(batch):
    (target,) = batch.targets.values()
    return zip(batch.keys, batch.image, target)

def main(root, out, stops, batches, workers):
    torch.set_num_threads(1)
    augment = [{"class_path": "RandomFlip"}, {"class_path": "RandomNoise"}]
    datasets = {
        "blobs": {"batch_size": 4, "weight": 2, "sample": {"patch_size": [8, 8, 8]}, "augment": augment},
        "shapes": {"batch_size": 8, "augment": augment},
        "motion": {"batch_size": 4, "sample": {"num_frames": 3, "crop_size": 16, "short_side": 18}},
    }
    found = {}
    for number in workers:
        for stop in stops:
            data = DataModule(root, datasets, num_workers=number, seed=5, window_shards=2)
            state = data.state_dict()
            data.load_state_dict({**state, "consumed": stop})
            loader = data.train_dataloader()
            for source in loader.dataset.sources.values():
                source.stage = Noting(source.stage)
            found[f"{number} {stop}"] = [
                [b.micro_batch, b.dataset, [(k, digest(i), int(t.sum())) for k, i, t in samples(b)]]
                for b in islice(loader, batches)
            ]
            del loader
    ranks = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, found)
    if dist.get_rank() == 0:
        with open(out, "w") as file:
            json.dump(ranks, file)

if __name__ == "__main__":
    rank, world, meeting, *rest = sys.argv[1:]
    dist.init_process_group("gloo", init_method="file://" + meeting, rank=int(rank), world_size=int(world))
    main(*[json.loads(a) for a in rest])
    dist.destroy_process_group()
"""


def run(folder: Path, world: int, stops: tuple[int, ...], batches: int, workers: tuple[int, ...]) -> list[dict]:
    (folder / "rank.py").write_text(RANK)
    out, meeting = folder / f"out-{world}-{len(stops)}.json", folder / f"meeting-{world}-{len(stops)}"
    rest = [json.dumps(a) for a in (str(folder / "shards"), str(out), stops, batches, workers)]
    ranks = [WarmProcess(folder / "rank.py", r, world, meeting, *rest, cwd=folder) for r in range(world)]
    for process in ranks:
        done = process.done(400)
        assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.slow
def test_a_mixture_of_three_goes_on_exactly_for_any_world_size_workers_and_stop(tmp_path: Path) -> None:
    kinds = {"blobs": "volume_segmentation", "shapes": "volume_classification", "motion": "video_classification"}
    for name, kind in kinds.items():
        toy = Toy(kind=kind, num_train=14, num_val=2, size=16, num_frames=6)
        build_shards(toy, tmp_path / "shards" / name, max_samples_per_shard=5, progress=False)
    whole = run(tmp_path, 1, (0,), max(STOPS) + BATCHES, (0,))[0]["0 0"]
    assert {b[1] for b in whole} == set(kinds)
    compared = 0
    for world in (1, 2, 4):
        ranks = run(tmp_path, world, STOPS, BATCHES, (0, 1, 2))
        for place in ranks[0]:
            stop = int(place.split()[1])
            for i, (micro_batch, dataset, samples) in enumerate(whole[stop : stop + BATCHES]):
                parts = [rank[place][i] for rank in ranks]
                assert all(p[:2] == [micro_batch, dataset] for p in parts)
                assert [s for p in parts for s in p[2]] == samples, f"world {world}, workers and stop {place}"
                compared += len(samples)
    assert compared == 3 * 3 * sum(len(b[2]) for s in STOPS for b in whole[s : s + BATCHES])
