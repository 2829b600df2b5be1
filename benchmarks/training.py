"""What the platform adds to a training step: `fit` against a bare PyTorch loop over the same model and batches.

    .venv/bin/python benchmarks/training.py [--steps 40] [--repeats 5] [--name resnet18] [--size 32]

The batches are the same tensors in both: one of each toy dataset, held in memory, so that loading costs neither side
anything. The bare loop does what training needs and nothing else: forward, loss, backward, clipping, AdamW as torch
makes it by default, schedule; it leaves the idle heads out, whose parameters then have no gradient and are not stepped.
A second one has AdamW fused, as `fit` has it on a CPU; a third also adds 0 x the idle heads' output, as training with
several ranks needs it, and so does all that `fit` does for the weights. All run in turns in one process, one thread;
the median ratio of their CPU time is printed, since wall time on a shared machine is the neighbours', and the share of
wall time that the platform waits for data, there and with a real loader. Absolute times say nothing across machines
and are not printed.
"""

from __future__ import annotations

import argparse
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
from inflate3d.sample import Batch
from inflate3d.tasks.medical_segmentation import MedicalSegmentation
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import DataModule, MultiTaskModule, trainer_defaults, with_default_callbacks
from inflate3d.training.idle import idle_loss
from inflate3d.training.optim import warmup_cosine
from inflate3d.training.run.loader import RunLoader
from inflate3d.training.step_encoder import StepEncoder
from torch.utils.data import IterableDataset

WARM_UP = 4
KINDS = {"seg": ("organ", "volume_segmentation"), "shapes": ("shape", "volume_classification")}


class Repeated(IterableDataset):
    """The same batches for ever, numbered on."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        number = 0
        while True:
            batch = self.batches[number % len(self.batches)]
            batch.micro_batch = number
            yield batch
            number += 1


class Clock(pl.Callback):
    """Notes the time of every step after the warm-up."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Note when, and how long was waited so far."""
        self.marks.append((time.process_time(), time.perf_counter(), trainer.train_dataloader.seconds_waited))


def data(root: Path, options: argparse.Namespace, num_workers: int = 0) -> DataModule:
    """Return the data module over the toy shards."""
    sample = {"patch_size": [options.size] * 3}
    datasets = {"seg": {"batch_size": 2, "sample": sample}, "shapes": {"batch_size": 2}}
    return DataModule(str(root), datasets, num_workers=num_workers, seed=0)


def module(options: argparse.Namespace) -> MultiTaskModule:
    """Return a new module; the same weights each time."""
    tasks = {"organ": MedicalSegmentation(datasets=["seg"]), "shape": VolumeClassification(datasets=["shapes"])}
    config = BackboneConfig(name=options.name, plan="isotropic", norm="per_domain", stems={"ct": 1, "mask": 1})
    return MultiTaskModule(config, tasks, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3))


BARE: dict[str, dict[str, bool]] = {
    "bare loop": {},
    "bare loop, AdamW fused": {"fused": True},
    "bare loop, AdamW fused, idle heads": {"fused": True, "idle": True},
}


def bare(
    root: Path, batches: list[Batch], options: argparse.Namespace, *, fused: bool = False, idle: bool = False
) -> float:
    """Return the CPU seconds a step of a bare loop."""
    cards = {name: manifest.card for name, manifest in data(root, options).manifests.items()}
    net = module(options).build(cards).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=fused or None)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(warmup_steps=0, max_steps=10_000))
    marks = []
    for number in range(options.steps + WARM_UP):
        batch = batches[number % len(batches)]
        loss = net.tasks[KINDS[batch.dataset][0]].step(StepEncoder(net.backbone), batch, seed=0)["loss"]
        if idle:
            loss = loss + idle_loss(net.tasks, batch.dataset, net.backbone, loss)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        marks.append(time.process_time())
    return (marks[-1] - marks[WARM_UP - 1]) / options.steps


def platform(root: Path, batches: list[Batch] | None, options: argparse.Namespace) -> tuple[float, float]:
    """Return the CPU seconds a step of `fit` and the share of time that it waited; batches None: from the shards."""
    source, clock = data(root, options, num_workers=0 if batches else 1), Clock()
    if batches:
        source.train_dataloader = lambda: RunLoader(Repeated(batches), batch_size=None)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        settings = {**trainer_defaults(), "accelerator": "cpu", "devices": 1, "limit_val_batches": 0}
        trainer = pl.Trainer(
            **settings,
            max_steps=options.steps + WARM_UP,
            default_root_dir=folder,
            callbacks=with_default_callbacks([clock]),
        )
        trainer.fit(module(options), datamodule=source)
    (cpu, start, waited_before), (cpu_end, end, waited) = clock.marks[WARM_UP - 1], clock.marks[-1]
    return (cpu_end - cpu) / options.steps, (waited - waited_before) / (end - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in (("steps", 40), ("repeats", 5), ("size", 32)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--name", default="resnet18")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, (_, kind) in KINDS.items():
            build_shards(Toy(kind=kind, num_train=16, num_val=2, size=options.size), root / name, progress=False)
        loaded = data(root, options)
        batches = [loaded.first_batches(name, 1)[0] for name in KINDS]
        ratios: dict[str, list[float]] = {name: [] for name in BARE}
        waits = []
        for _ in range(options.repeats):
            plain = {name: bare(root, batches, options, **kind) for name, kind in BARE.items()}
            ours, wait = platform(root, batches, options)
            for name, seconds in plain.items():
                ratios[name].append(ours / seconds)
            waits.append(wait)
        for name, found in ratios.items():
            print(f"platform / {name}: {statistics.median(found):.3f} (from {min(found):.3f} to {max(found):.3f})")
        print(f"waiting for batches in memory: {statistics.median(waits):.2%} of the time")
        print(f"waiting for shards, one worker: {platform(root, None, options)[1]:.2%} of the time")


if __name__ == "__main__":
    main()
