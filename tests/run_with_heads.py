"""A run of a small net with a segmenter and two classifiers, as a fit leaves it behind, without the fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from inflate3d.contracts import DatasetCard, InputSpec, Intensity
from inflate3d.models import BackboneConfig
from inflate3d.targets import ClassTarget, MaskTarget, ValueTarget
from inflate3d.tasks.medical_segmentation import MedicalSegmentation
from inflate3d.tasks.video_action import VideoAction
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import MultiTaskModule, write_config
from inflate3d.training.checkpoints.store import write_checkpoint

CARDS = {
    "organs": DatasetCard(
        *("organs", "volume", "Organs", "ct", "http://organs", "CC-BY-4.0", True, True, "Organs et al."),
        {"mask": MaskTarget(("background", "liver", "spleen"))},
        InputSpec(("hu",), (2.0, 1.0, 1.0), "RAS", Intensity("window", (-100.0, 300.0))),
    ),
    "scans": DatasetCard(
        *("scans", "volume", "Scans", "ct", "http://scans", "CC-BY-NC-4.0", False, True, ""),
        {"label": ClassTarget(("well", "ill")), "age": ValueTarget("years", 0, 120)},
        InputSpec(("hu",), None, "RAS", Intensity("zscore")),
    ),
    "clips": DatasetCard(
        *("clips", "video", "Clips", "rgb", "http://clips", "CC-BY-4.0", True, True, ""),
        {"label": ClassTarget(("jump", "run", "wave", "sit"))},
        InputSpec(("red", "green", "blue")),
    ),
}
TASKS = {
    "cut": {"class_path": "MedicalSegmentation", "init_args": {"datasets": ["organs"]}},
    "ill": {"class_path": "VolumeClassification", "init_args": {"datasets": ["scans"]}},
    "act": {"class_path": "VideoAction", "init_args": {"datasets": ["clips"]}},
}


@dataclass
class Run:
    folder: Path
    module: MultiTaskModule


def write_run(folder: Path, module: MultiTaskModule) -> None:
    """What a fit leaves behind, without the fit."""
    datasets = {
        "organs": {"batch_size": 1, "sample": {"patch_size": [16, 16, 16]}},
        "scans": {"batch_size": 1, "sample": {"size": [16, 16, 16]}},
        "clips": {"batch_size": 1, "sample": {"num_frames": 8, "frame_interval": 2, "crop_size": 32, "std": 0.2}},
    }
    backbone = {"name": "test_resnet", "stems": {"rgb": 3, "ct": 1}}
    write_config(folder, {"model": {"backbone": backbone, "tasks": TASKS}, "data": {"datasets": datasets}})
    state: dict[str, object] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(state)
    write_checkpoint(folder / "checkpoints", 7, lambda p: torch.save(state, p), score=0.5, metrics={"val/score": 0.5})


def make_run(folder: Path) -> Run:
    """Make a module whose statistics differ by dataset, saved as a run."""
    torch.manual_seed(0)
    tasks = {
        "cut": MedicalSegmentation(datasets=["organs"]),
        "ill": VolumeClassification(datasets=["scans"]),
        "act": VideoAction(datasets=["clips"]),
    }
    config = BackboneConfig("test_resnet", stems={"rgb": 3, "ct": 1})
    module = MultiTaskModule(config, tasks).build(CARDS)
    module.backbone.train()
    for i, (name, card) in enumerate(CARDS.items()):
        module.backbone(torch.randn(2, len(card.input.channels), 8, 32, 32) * (i + 1) + i, domain=name)
    module.eval()
    write_run(folder, module)
    return Run(folder, module)
