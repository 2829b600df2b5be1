"""Do the tasks without labels learn? Each one's own measure on held-out data, beside what a trivial answer reaches.

    OMP_NUM_THREADS=1 python benchmarks/label_free.py --output runs/label_free [--only WORD ...] [--seeds 3]

Each question trains timm's smallest ResNet, from random weights, on one task and one dataset, and is asked again of a
net whose learning rate is 0. Data: all 350 hippocampus volumes, whose labels nobody looks at, and ARID's clips by scene
(both in DIR, ../shared/data by default), and formula sets. A cell (question, seed) that is finished is not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from inflate3d.contracts import AbstractTask
from inflate3d.files import write_whole
from inflate3d.models import BackboneConfig
from inflate3d.nn.masking import block_statistics
from inflate3d.seeds import mix
from inflate3d.tasks.arrow_of_time import ArrowOfTime
from inflate3d.tasks.dense_contrast import DenseContrast
from inflate3d.tasks.distillation import Distillation
from inflate3d.tasks.masked_volume import MaskedVolume
from inflate3d.tasks.self_distillation import SelfDistillation
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import DataModule, MultiTaskModule, trainer_defaults, with_default_callbacks
from inflate3d.training.run.metrics_csv import read_metrics
from torch import Tensor
from torch.nn import functional as F

UNTRAINED_STEPS = 20  # enough for the running statistics
KNOWN = 720  # training samples among which neighbours are looked for
VOLUME = {"batch_size": 8, "sample": {"patch_size": [16, 16, 16]}}
SHAPE = {"batch_size": 12, "sample": {"size": [16, 16, 16]}}
PLAYS = ["forwards", "fast", "shuffled"]
FROM_MOTION: Any = {"lr": 1e-3, "inflation": "random", "options": {"batch_size": 48}}


def datasets(data: Path) -> dict[str, dict[str, Any]]:
    """Return each dataset as a config has it."""
    images = {"root": str(data / "Task04_Hippocampus"), "modality": "mri", "pattern": "images*/*.nii.gz"}
    arid = {"root": str(data / "arid6"), "group_pattern": r"_(\d+)_\d+$", "val_fraction": 0.25, "name": "arid6"}
    dark = {"num_frames": 16, "frame_interval": 2, "short_side": 40, "crop_size": 32, "gamma": 0.4}
    clip = {"num_frames": 16, "short_side": 32, "crop_size": 32}
    return {
        "hippocampus": {**VOLUME, "build": _build("NiftiFolder", **images, val_count=50)},
        "scenes": {**VOLUME, "build": _build("FormulaScenes", num_train=800, num_val=80, size=16)},
        "shapes": {**SHAPE, "build": _build("FormulaShapes", num_classes=10, num_train=1500, num_val=200, size=16)},
        "motions": {
            "batch_size": 8,
            "sample": clip,
            "build": _build("FormulaMotions", num_train=600, num_val=96, size=32),
        },
        "arid": {"batch_size": 8, "sample": dark, "build": _build("VideoFolder", **arid)},
    }


def _build(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}


@dataclass(frozen=True)
class Question:
    """A task on a dataset. measure: what it logs, or `neighbours`, the accuracy of 5 nearest neighbours in features.

    trivial: what is reached without learning: its name, and a number, a measure's name, or a function of a held-out
    batch. margin: what learning must add to that. options: what its dataset has otherwise. inflation: how the net,
    drawn in 2D, is laid along D; `center` begins as one frame's net, `random` sees D from the start.
    """

    task: Callable[[list[str], Path], AbstractTask]
    dataset: str
    measure: str
    margin: float
    steps: int
    trivial: tuple[str, Callable[[AbstractTask, Any], float] | float | str]
    lr: float = 3e-3
    inflation: str = "center"
    options: Mapping[str, Any] = field(default_factory=dict)


def teacher(data: Path) -> dict[str, Any]:
    """Return the 2D net of the distillation."""
    file = str(data / "weights" / "tf_efficientnet_lite0.in1k.safetensors")
    return {"name": "tf_efficientnet_lite0", "pretrained_cfg_overlay": {"file": file}}


def neighbours_fill(task: Any, batch: Any) -> float:
    """Return what of the hidden voxels the mean of the visible ones around explains, with the best factor.

    Each hidden voxel gets a Gaussian mean of the visible ones, and blocks are normalised as the task does it.
    """
    image = batch.image.float()
    hidden = task.draw(image, mix(0, "trivial"))
    weights = torch.exp(-0.5 * (torch.arange(-8, 9) / 4.0) ** 2)
    around, visible = image.masked_fill(hidden, 0.0), (~hidden).float().expand_as(image)
    for axis in (2, 3, 4):
        kernel = weights.reshape([17 if i == axis else 1 for i in range(5)])
        padding = tuple(8 * (i == axis) for i in (2, 3, 4))
        around, visible = (F.conv3d(x, kernel, padding=padding) for x in (around, visible))
    answer = around / visible.clamp_min(1e-6)
    mean, deviation = block_statistics(image, block=task.blocks(image))
    pattern = (answer - block_statistics(answer, block=task.blocks(image))[0]) / deviation
    wanted, pattern = ((image - mean) / deviation)[hidden], pattern[hidden]
    factor = (wanted @ pattern) / (pattern @ pattern).clamp_min(1e-6)
    return float(1 - (wanted - factor * pattern).square().sum() / wanted.square().sum())


def mean_features(task: Any, batch: Any) -> float:
    """Return the cosine of the teacher's features with their own mean over the batch, over the task's levels."""
    with torch.no_grad():
        features = task.teacher(batch.image, domain=batch.dataset)
    levels = [features.maps[i].float() for i in task.match.indices]
    return statistics.mean(float(F.cosine_similarity(m, _mean_direction(m), dim=1).mean()) for m in levels)


def _mean_direction(map_BCDHW: Tensor) -> Tensor:
    return F.normalize(map_BCDHW, dim=1).mean(dim=(0, 2, 3, 4), keepdim=True)


QUESTIONS = {
    "masked volumes, hippocampus": Question(
        lambda names, _: MaskedVolume(datasets=names, block=4, hidden=0.5, decoder_channels=[8, 8, 16, 16, 16]),
        *("hippocampus", "explained", 0.05, 200, ("visible neighbours", neighbours_fill)),
    ),
    "masked volumes, scenes": Question(
        lambda names, _: MaskedVolume(datasets=names, block=4, hidden=0.5, decoder_channels=[8, 8, 16, 16, 16]),
        *("scenes", "explained", 0.05, 300, ("visible neighbours", neighbours_fill)),
    ),
    "dense contrast, hippocampus": Question(
        lambda names, _: DenseContrast(datasets=names, points=32),
        *("hippocampus", "found", 0.1, 100, ("chance", "chance")),
    ),
    "dense contrast, scenes": Question(
        lambda names, _: DenseContrast(datasets=names, points=32, other_contrast="contrast"),
        *("scenes", "found", 0.1, 100, ("chance", "chance")),
    ),
    "self-distillation, shapes": Question(
        lambda names, _: SelfDistillation(datasets=names, prototypes=32, momentum=0.95, local_crops=0, contrast=0.0),
        *("shapes", "neighbours", 0.1, 150, ("chance", 0.1)),
        options={"batch_size": 48},
    ),
    "distillation, hippocampus": Question(
        lambda names, data: Distillation(datasets=names, teacher=teacher(data)),
        *("hippocampus", "cosine", 0.05, 80, ("mean features", mean_features)),
    ),
    "arrow of time, motions": Question(
        lambda names, _: ArrowOfTime(datasets=names, plays=PLAYS),
        *("motions", "accuracy", 0.15, 150, ("chance", "chance")),
        **FROM_MOTION,
    ),
    "arrow of time, ARID": Question(
        lambda names, _: ArrowOfTime(datasets=names, plays=PLAYS),
        *("arid", "accuracy", 0.1, 150, ("chance", "chance")),
        **FROM_MOTION,
    ),
    "formula, shapes": Question(
        lambda names, _: VolumeClassification(datasets=names),
        *("shapes", "accuracy", 0.3, 150, ("chance", 0.1)),
    ),
}


def fit(
    question: Question, seed: int, *, lr: float, steps: int, run: Path, data: Path
) -> tuple[MultiTaskModule, DataModule, dict[str, float]]:
    """Train; return the module, its data and the last row of metrics, by measure."""
    pl.seed_everything(seed, verbose=False)
    task = question.task([question.dataset], data)
    sets = {question.dataset: {**datasets(data)[question.dataset], **question.options}}
    shards = DataModule(str(run.parents[1] / "shards"), sets, seed=seed)
    laid = {"plan": "isotropic", "inflation": question.inflation}
    backbone = BackboneConfig("test_resnet", **laid, stems={"mri": 1, "mask": 1, "rgb": 3})
    module = MultiTaskModule(
        backbone, {"task": task}, lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=0.05), warmup_steps=steps // 10
    )
    settings = {"accelerator": "cpu", "devices": 1, "max_steps": steps, "val_check_interval": steps}
    settings |= {"gradient_clip_val": 1.0, "enable_model_summary": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        **{**trainer_defaults(), **settings, "default_root_dir": str(run)},
        callbacks=with_default_callbacks([], progress_bar=False),
    )
    trainer.fit(module, datamodule=shards)
    if trainer.global_step < steps:
        raise SystemExit(f"{run}: stopped at step {trainer.global_step} of {steps}; the same command asks again")
    row = [row for row in read_metrics(run / "metrics.csv") if any(key.startswith("val/task/") for key in row)][-1]
    return module, shards, {key.rpartition("/")[2]: value for key, value in row.items() if key.startswith("val/task/")}


def ask(name: str, seed: int, folder: Path, data: Path) -> dict[str, float]:
    """Return what the question's measure is after training, of the untrained net, and for the trivial answer."""
    question, found = QUESTIONS[name], {}
    for arm, lr, steps in (("untrained", 0.0, UNTRAINED_STEPS), ("learnt", question.lr, question.steps)):
        run = folder / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}-{arm}"
        shutil.rmtree(run, ignore_errors=True)
        module, shards, measures = fit(question, seed, lr=lr, steps=steps, run=run, data=data)
        if question.measure == "neighbours":
            measures["neighbours"] = neighbours(module, shards)
        print(name, seed, arm, {key: round(value, 4) for key, value in measures.items()}, flush=True)
        found[arm] = measures[question.measure]
    trivial = question.trivial[1]
    if isinstance(trivial, str):
        trivial = measures[trivial]
    elif callable(trivial):
        batches = list(shards.val_dataloader())
        trivial = statistics.mean(trivial(module.tasks["task"], batch) for batch in batches)
    return {**found, "trivial": trivial}


@torch.no_grad()
def neighbours(module: MultiTaskModule, shards: DataModule) -> float:
    """Return how often the most frequent class of the 5 nearest training features is the held-out sample's own."""
    module.eval()
    ((dataset, config),) = shards.datasets.items()
    parts = []
    for batches in (shards.first_batches(dataset, KNOWN // config.batch_size), shards.val_dataloader()):
        pairs = [(module.backbone(b.image, domain=dataset).pooled, *b.targets.values()) for b in batches]
        parts.append([torch.cat(column) for column in zip(*pairs, strict=True)])
    (known, classes), (asked, wanted) = parts
    nearest = (F.normalize(asked, dim=1) @ F.normalize(known, dim=1).T).topk(5).indices
    return float((classes[nearest].mode(dim=1).values == wanted).float().mean())


def main() -> None:
    """Ask what was not asked yet, then print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for shards, runs and cells")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="default: ../shared/data")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="questions that begin with one of these")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    names = [name for name in QUESTIONS if not options.only or name.startswith(tuple(options.only))]
    cells = options.output / "cells"
    cells.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        for name in names:
            file = cells / f"{name}, {seed}.json"
            if not file.is_file():
                write_whole(file, json.dumps(ask(name, seed, options.output / "runs", options.data)).encode())
            found.setdefault(name, []).append(json.loads(file.read_text(encoding="utf-8")))
    print(
        "\n| task, data | measure | learnt, by seed | trivial answer | untrained | margin asked | learns |\n|"
        + "---|" * 7
    )
    for name, rows in found.items():
        print(_row(QUESTIONS[name], name, rows))


def _row(question: Question, name: str, rows: list[dict[str, float]]) -> str:
    learnt = [row["learnt"] for row in rows]
    floors = [max(row["trivial"], row["untrained"]) for row in rows]
    learns = all(a - b > question.margin for a, b in zip(learnt, floors, strict=True))
    trivial, untrained = (statistics.mean(row[key] for row in rows) for key in ("trivial", "untrained"))
    cells = (
        *(name, question.measure, ", ".join(f"{value:.3f}" for value in learnt)),
        *(
            f"{trivial:.3f} ({question.trivial[0]})",
            f"{untrained:.3f}",
            f"{question.margin}",
            "yes" if learns else "no",
        ),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
