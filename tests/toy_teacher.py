"""A toy task without labels whose teacher follows the backbone; run as a script it trains, on any strategy.

    python tests/toy_teacher.py RUN SHARDS [--strategy ddp|zero1|zero2|zero3] [--devices N] [--steps N] [--norm NAME]

KILL=N in the environment: the process kills itself before optimiser step N + 1.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from inflate3d.contracts import AbstractTask, Encoder, Features
from inflate3d.models import BackboneConfig
from inflate3d.nn import move_towards
from inflate3d.sample import Batch
from inflate3d.seeds import mix
from inflate3d.tasks.medical_segmentation import MedicalSegmentation
from inflate3d.tasks.regression import Regression
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import CheckpointWriter, DataModule, DeepSpeed, MultiTaskModule, find_checkpoint
from inflate3d.training import trainer_defaults as defaults
from inflate3d.training import with_default_callbacks as with_callbacks
from torch import Tensor, nn

MOMENTUM = 0.9


class ToyTeacher(AbstractTask):
    """What a small head makes of a noisy view should be what the teacher sees in the clean one."""

    def __init__(self, *, datasets: Any, noise: float = 0.0) -> None:
        super().__init__(datasets=datasets)
        self.noise = noise
        self.steps: list[int] = []

    def build(self, encoder: Encoder) -> None:
        width = encoder.feature_info.num_pooled
        self.student, self.teacher = nn.Linear(width, width), encoder.frozen_copy()

    def modules(self) -> dict[str, nn.Module]:
        return {"student": self.student}

    def frozen_modules(self) -> dict[str, nn.Module]:
        return {"teacher": self.teacher}

    def idle(self, name: str, features: Features) -> Tensor:
        output: Tensor = self.student(features.pooled)
        return output

    def step(self, encoder: Encoder, batch: Batch, *, seed: int) -> dict[str, Tensor]:
        view = batch.image
        if self.noise:
            drawn = torch.randn(view.shape, generator=torch.Generator().manual_seed(mix(seed, "noise")))
            view = view + self.noise * drawn
        guess = self.student(encoder(view, domain=batch.dataset).pooled)
        with torch.no_grad():
            wanted = self.teacher(batch.image, domain=batch.dataset).pooled
        return {"loss": (guess - wanted).square().mean()}

    def after_step(self, encoder: Encoder, *, step: int) -> None:
        self.steps.append(step)
        move_towards(self.teacher, encoder, MOMENTUM)  # type: ignore[arg-type]


def toy_module(norm: str = "per_domain", noise: float = 0.0) -> MultiTaskModule:
    """Four tasks over two datasets; `all` serves three of them."""
    tasks: dict[str, AbstractTask] = {
        "teacher": ToyTeacher(datasets=["all"], noise=noise),
        "shape": VolumeClassification(datasets=["all"]),
        "size": Regression(datasets=["all"], scale=1, centre=1),
        "organ": MedicalSegmentation(datasets=["seg"], decoder_channels=[4, 4, 8, 8, 8]),
    }
    config = BackboneConfig(name="test_resnet", stems={"ct": 1}, norm=norm)  # type: ignore[arg-type]
    # Calm steps: larger ones amplify rounding from step to step, under DDP as much as under ZeRO.
    return MultiTaskModule(config, tasks, lambda p: torch.optim.AdamW(p, lr=2e-3, eps=1e-3), warmup_steps=1)


def toy_data(shards: Path) -> DataModule:
    """Patches of the two datasets."""
    sample = {"patch_size": [8, 16, 16]}
    datasets = {name: {"batch_size": 4, "sample": sample} for name in ("all", "seg")}
    return DataModule(str(shards), datasets, seed=0)


def fit(run: Path, shards: Path, module: MultiTaskModule, *callbacks: Any, **options: Any) -> pl.Trainer:
    """Train, or go on."""
    torch.set_num_threads(1)
    callbacks = (*callbacks, CheckpointWriter(every_steps=2, keep_last=9))
    settings = {**defaults(), "accelerator": "cpu", "devices": 1, "max_steps": 6, "log_every_n_steps": 1}
    settings |= {"default_root_dir": str(run), "callbacks": with_callbacks([*callbacks], progress_bar=False)}
    settings |= {"accumulate_grad_batches": 2, "limit_val_batches": 0, "enable_progress_bar": False}
    trainer = pl.Trainer(**{**settings, **options})
    found = find_checkpoint(run)
    trainer.fit(module, datamodule=toy_data(shards), ckpt_path=found and str(found.state))
    return trainer


class Killer(pl.Callback):
    """Ends the process as kill -9 does."""

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if os.environ.get("KILL") == str(trainer.global_step):
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Train as the arguments say, and write what each rank's teacher is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--norm", default="per_domain")
    parser.add_argument("--noise", type=float, default=0.0)
    args = parser.parse_args()
    strategy: Any = DeepSpeed(stage=int(args.strategy[-1])) if args.strategy.startswith("zero") else args.strategy
    module = toy_module(args.norm, args.noise)
    trainer = fit(
        args.run, args.shards, module, Killer(), strategy=strategy, devices=args.devices, max_steps=args.steps
    )
    digest = hashlib.sha256()
    for name, value in module.frozen.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    (args.run / f"teacher-{trainer.global_rank}.txt").write_text(digest.hexdigest())


if __name__ == "__main__":
    main()
