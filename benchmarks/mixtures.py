"""What more datasets cost a training step: CPU time a micro-batch with 1, 20 and 100 datasets, a task for each.

    .venv/bin/python benchmarks/mixtures.py [--datasets 1 20 100] [--steps 60] [--repeats 3] [--name resnet18]

Every dataset has 40 small volumes of its own, loaded in the trainer's process. With `--tasks one` one task takes all
datasets. All runs take turns in one process on one thread; the median of a run's micro-batches after the first of
every dataset counts, as its ratio to one dataset. What memory the process holds at the end of each is printed as well.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.models import BackboneConfig
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import DataModule, MultiTaskModule, trainer_defaults


class Clock(pl.Callback):
    """Notes the CPU time at the end of every micro-batch."""

    def __init__(self) -> None:
        self.marks_s: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        """Note it."""
        self.marks_s.append(time.process_time())


def measured(root: Path, count: int, options: argparse.Namespace) -> float:
    """Return the median CPU milliseconds a micro-batch of a run over `count` datasets."""
    names = [f"set{i:03d}" for i in range(count)]
    for name in names:
        if not (root / name).exists():
            (root / name).symlink_to(root / "shards")
    datasets = {name: {"batch_size": 2} for name in names}
    groups = [names] if options.tasks == "one" else [[name] for name in names]
    tasks = {f"task{i:03d}": VolumeClassification(datasets=group) for i, group in enumerate(groups)}
    config = BackboneConfig(name=options.name, plan="isotropic", stems={"mask": 1})
    torch.manual_seed(0)
    module = MultiTaskModule(config, tasks, lambda p: torch.optim.AdamW(p, lr=1e-4, fused=True))
    clock = Clock()
    quiet = ("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger")
    own = {"max_steps": options.steps + count, "limit_val_batches": 0, "accelerator": "cpu", "devices": 1}
    own |= {"default_root_dir": str(root / f"run{time.monotonic_ns()}"), "callbacks": [clock]}
    trainer = pl.Trainer(**{**trainer_defaults(), **own, **dict.fromkeys(quiet, False)})
    trainer.fit(module, datamodule=DataModule(str(root), datasets, num_workers=0, seed=0))
    marks = clock.marks_s[count:]
    return 1000 * statistics.median(b - a for a, b in itertools.pairwise(marks))


def main() -> None:
    """Measure in turns and print a line a number of datasets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", type=int, nargs="+", default=[1, 20, 100])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--name", default="resnet18")
    parser.add_argument("--size", type=int, default=24)
    parser.add_argument("--tasks", choices=["one", "each"], default="each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        toy = Toy(kind="volume_classification", num_train=40, num_val=2, size=options.size)
        build_shards(toy, root / "shards")
        found: dict[int, list[float]] = {count: [] for count in options.datasets}
        for _ in range(options.repeats):
            for count, times in found.items():
                times.append(measured(root, count, options))
    first = found[options.datasets[0]]
    for count, times in found.items():
        ratio = statistics.median(b / a for a, b in zip(first, times, strict=True))
        print(f"{count:4d} datasets: {statistics.median(times):7.1f} ms CPU a micro-batch, {ratio:.2f} of the first")


if __name__ == "__main__":
    main()
