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
from inflate3d.evaluation.pictures.planes import COLUMNS
from inflate3d.evaluation.pictures.samples import Picture, _dice, _said, draw_pictures, predict_some
from inflate3d.models import BackboneConfig
from inflate3d.targets import MultiLabelTarget
from inflate3d.tasks.medical_segmentation import MedicalSegmentation
from inflate3d.tasks.regression import Regression
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
from matplotlib.figure import Figure
from matplotlib.image import imread
from toy_batches import toy_card

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


@pytest.mark.slow
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
    assert [p.name for p in pictures] == ["seg"] * 2 + ["shapes"] * 2 + ["clips"] * 2
    for picture in pictures:
        torch.testing.assert_close(picture.answer.sum(dim=0), torch.ones_like(picture.answer[0]))


def test_a_folder_that_is_no_run_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="nothing has been logged"):
        plot_curves(tmp_path)
    with pytest.raises(InputError, match="no run folder"):
        load_module(tmp_path)


def picture_of(card, target: str, value, answer) -> Picture:
    depth = np.zeros((1, *(value.shape if card.targets[target].per_voxel else (2, 2, 2))))
    return Picture("d", "k", card, card.targets[target], depth, value, answer, (1, 1, 1))


def test_captions_say_what_is_so():
    card = Toy(kind="volume_classification").card
    names = card.targets["label"].names
    picture = picture_of(card, "label", torch.tensor(1), torch.tensor([0.1, 0.7, 0.2]))
    assert f"is {names[1]}, said {names[1]} 0.70" in _said(picture)
    assert _said(picture).endswith("right")
    picture.value = torch.tensor(0)
    assert _said(picture).endswith("WRONG")
    picture.value = torch.tensor(-1)
    assert _said(picture) == f"is unknown, said {names[1]} 0.70, {names[2]} 0.20, {names[0]} 0.10"


def test_captions_of_numbers_and_labels():
    size = picture_of(Toy(kind="volume_targets").card, "volume", torch.tensor(1.5), torch.tensor(1.25))
    assert _said(size) == "is 1.5 ml, said 1.25 ml"
    card = toy_card(findings=MultiLabelTarget(("a", "b", "c")))
    labels = picture_of(card, "findings", torch.tensor([1.0, float("nan"), 0.0]), torch.tensor([0.2, 0.9, 0.6]))
    assert _said(labels) == "is a, said b 0.90, c 0.60"


def test_the_dice_in_a_caption_equals_the_formula():
    card = Toy(kind="volume_segmentation").card
    names = card.targets["mask"].names
    truth, guess = torch.tensor([[[1, 1, 0, 2]]]), np.array([[[1, 0, 0, 2]]])
    picture = picture_of(card, "mask", truth, torch.zeros(3, 1, 1, 4))
    assert _dice(picture, truth.numpy(), guess) == f"Dice {names[1]} 0.67, {names[2]} 1.00"


def test_every_task_of_a_dataset_is_drawn_on_a_row_of_its_own(tmp_path):
    card = Toy(kind="volume_targets").card
    module = MultiTaskModule(
        BackboneConfig("test_resnet"),
        {
            "shape": VolumeClassification(datasets=["all"]),
            "cut": MedicalSegmentation(datasets=["all"]),
            "size": Regression(datasets=["all"], scale=1),
        },
    ).build({"all": card})
    build_shards(Toy(kind="volume_targets", num_train=2, num_val=2, size=16), tmp_path / "all", progress=False)
    data = DataModule(str(tmp_path), {"all": {"batch_size": 1, "sample": {"patch_size": [8, 16, 16]}}}).prepare()
    module.windows = dict(data.windows)
    pictures = list(predict_some(module, data, per_dataset=1))
    assert [p.name for p in pictures] == ["all shape", "all cut", "all size"]
    figure = Figure()
    draw_pictures(figure, pictures)
    assert len(figure.axes) == 3 * COLUMNS
    told = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert [sum(t.startswith(f"all {name} ") for t in told) for name in ("shape", "cut", "size")] == [1, 1, 1]
    assert {"image, D = ", "truth, D = ", "prediction, D = "} <= {t[: t.find("= ") + 2] for t in told if "D = " in t}
