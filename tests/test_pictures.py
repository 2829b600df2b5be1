"""Pictures of a run are drawn from its folder alone, and show what the net said."""

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.evaluation import draw_run, plot_curves
from inflate3d.evaluation.pictures.samples import Picture, _dice, _likely, predict_some
from inflate3d.models import BackboneConfig
from inflate3d.tasks.medical_segmentation import MedicalSegmentation
from inflate3d.tasks.video_action import VideoAction
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import (
    DataModule,
    MultiTaskModule,
    default_callbacks,
    trainer_defaults,
    write_config,
)
from inflate3d.training.run.saved import load_data, load_module
from matplotlib.image import imread

BACKBONE = {"name": "test_resnet", "pretrained": False, "stems": {"rgb": 3, "ct": 1, "mask": 1}}
TASKS = {
    "organ": {"class_path": "MedicalSegmentation", "init_args": {"datasets": ["seg"], "decoder_channels": [4] * 5}},
    "shape": {"class_path": "VolumeClassification", "init_args": {"datasets": ["shapes"]}},
    "motion": {"class_path": "VideoAction", "init_args": {"datasets": ["clips"]}},
}
CLASSES = {c.__name__: c for c in (MedicalSegmentation, VolumeClassification, VideoAction)}
DATASETS = {
    "seg": {"batch_size": 2, "sample": {"patch_size": [8, 16, 16]}},
    "shapes": {"batch_size": 2, "sample": {}},
    "clips": {"batch_size": 2, "sample": {"num_frames": 8, "crop_size": 32}},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder as `platform fit` leaves it, of two steps."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("root")
    for name, kind in (("seg", "volume_segmentation"), ("shapes", "volume_classification")):
        build_shards(Toy(kind=kind, num_train=4, num_val=3, size=16), root / "shards" / name, progress=False)
    clips = Toy(kind="video_classification", num_train=4, num_val=3, size=32, num_frames=8)
    build_shards(clips, root / "shards" / "clips", progress=False)
    data = {"root": str(root / "shards"), "datasets": DATASETS, "num_workers": 0}
    write_config(root / "run", {"model": {"backbone": BACKBONE, "tasks": TASKS}, "data": data})
    tasks = {name: CLASSES[spec["class_path"]](**spec["init_args"]) for name, spec in TASKS.items()}
    settings = {**trainer_defaults(), "accelerator": "cpu", "devices": 1, "max_steps": 3, "log_every_n_steps": 1}
    trainer = pl.Trainer(**settings, default_root_dir=str(root / "run"), callbacks=default_callbacks())
    trainer.fit(MultiTaskModule(BackboneConfig(**BACKBONE), tasks), datamodule=DataModule(**data))
    return root / "run"


def is_drawn(path: Path) -> bool:
    return len(np.unique(imread(path)[..., :3].reshape(-1, 3), axis=0)) > 20


def test_a_run_is_drawn_from_its_folder_alone(run):
    path = draw_run(run, per_dataset=1)
    assert path == run / "pictures.png"
    assert is_drawn(path)


def test_curves_alone(run):
    assert is_drawn(plot_curves(run))


def test_a_module_read_back_predicts_as_the_saved_weights_do(run):
    first, second = load_module(run), load_module(run, "last")
    assert not first.training
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])
    assert first.windows == {"seg": (8, 16, 16)}
    pictures = list(predict_some(first, load_data(run), per_dataset=2))
    assert [p.dataset for p in pictures] == ["seg"] * 2 + ["shapes"] * 2 + ["clips"] * 2
    for picture in pictures:
        np.testing.assert_allclose(picture.probabilities.sum(axis=0), 1, rtol=1e-5)


def test_a_folder_that_is_no_run_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="nothing has been logged"):
        plot_curves(tmp_path)
    with pytest.raises(InputError, match="no run folder"):
        load_module(tmp_path)


def test_captions_say_what_is_so():
    card = Toy(kind="volume_classification").card
    target, said = np.array(1), np.array([0.1, 0.7, 0.2])
    picture = Picture("d", "k", card, np.zeros((1, 2, 2, 2)), target, said, (1, 1, 1))
    assert f"is {card.classes[1]}, said {card.classes[1]} 0.70" in _likely(picture)
    assert _likely(picture).endswith("right")
    picture.target = np.array(0)
    assert _likely(picture).endswith("WRONG")


def test_the_dice_in_a_caption_equals_the_formula():
    card = Toy(kind="volume_segmentation").card
    truth, guess = np.array([[[1, 1, 0, 2]]]), np.array([[[1, 0, 0, 2]]])
    picture = Picture("d", "k", card, np.zeros((1, 1, 1, 4)), truth, np.zeros((3, 1, 1, 4)), (1, 1, 1))
    assert _dice(picture, truth, guess) == f"Dice {card.classes[1]} 0.67, {card.classes[2]} 1.00"
