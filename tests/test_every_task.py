"""Every task, built in or plugged in, keeps the contract, from raw files to a published head."""

import inspect
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from inflate3d import discover
from inflate3d.contracts import AbstractTask, Features, Prediction, SupervisedTask
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.evaluation.pictures.samples import Shown, predict_some
from inflate3d.models import BackboneConfig
from inflate3d.models.publication.heads import load_head
from inflate3d.models.publication.integrity import check_files
from inflate3d.nn import Head
from inflate3d.publishing.from_run import publish_run
from inflate3d.targets import ClassTarget
from inflate3d.tasks.medical_segmentation import MedicalSegmentation
from inflate3d.tasks.regression import Regression
from inflate3d.tasks.video_action import VideoAction
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import DataModule, MultiTaskModule, write_config
from inflate3d.training.checkpoints.store import write_checkpoint
from torch.nn import functional as F
from toy_batches import ToyEncoder, ToyScans, bound, toy_batch, toy_card

TASKS = sorted(discover.plug_ins("tasks"))
GIVEN = {"scale": 10.0, "centre": 30.0}  # what arguments without a default are given
# The toy encoder does not learn, so that its own start would stay what it is.
CHOSEN = {"distillation": {"teacher": {"name": "test_resnet", "pretrained": False}}}


def made(name: str, **options) -> AbstractTask:
    """A task over one dataset that has its medium and a target of every type."""
    cls = discover.find("tasks", name).load()
    needed = [n for n, p in inspect.signature(cls).parameters.items() if p.default is p.empty and n != "datasets"]
    return cls(datasets=["toy"], **{n: GIVEN[n] for n in needed}, **CHOSEN.get(name, {}), **options)


def card_for(task: AbstractTask):
    return toy_card(media=task.media[0] if task.media else "volume")


def built(name: str, **options) -> AbstractTask:
    task = made(name, **options)
    return bound(task, card_for(task))


def is_scored(name: str) -> bool:
    return discover.find("tasks", name).load().main_metric is not None


SCORED = [name for name in TASKS if is_scored(name)]


def test_every_file_of_tasks_is_walked():
    files = {file.stem for file in (Path(__file__).parents[1] / "tasks").glob("[!_]*.py")}
    assert files
    assert files <= set(TASKS)  # plug-ins of other packages besides


@pytest.mark.parametrize("name", TASKS)
def test_loss_falls_when_one_batch_is_fitted(name):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    task, encoder = built(name), ToyEncoder()
    batch = toy_batch(card_for(task))
    parameters = itertools.chain.from_iterable(m.parameters() for m in task.modules().values())
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    losses = []
    for _ in range(15):
        loss = task.step(encoder, batch, seed=1)["loss"]
        assert loss.ndim == 0
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.after_step(encoder, step=1)
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", TASKS)
def test_a_step_draws_from_its_seed_alone(name):
    task, encoder = built(name), ToyEncoder()
    batch = toy_batch(card_for(task))
    for module in task.modules().values():
        module.eval()
    losses = []
    for drawn_before in (1, 2):
        torch.manual_seed(drawn_before)
        losses.append(task.step(encoder, batch, seed=7)["loss"])
    assert torch.equal(*losses)


@pytest.mark.parametrize("name", TASKS)
def test_every_trained_parameter_gets_a_gradient_and_can_idle(name):
    task, encoder = built(name), ToyEncoder()
    task.step(encoder, toy_batch(card_for(task)), seed=1)["loss"].backward()
    smallest = Features([torch.zeros(1, c, 2, 2, 2) for c in (4, 6)], torch.zeros(1, 6), (2, 2, 2))
    for own, module in task.modules().items():
        assert all(p.grad is not None for p in module.parameters())
        assert task.idle(own, smallest).isfinite().all()


@pytest.mark.parametrize("name", TASKS)
def test_predictions_are_of_a_known_type_and_feed_the_metrics(name):
    task, card = built(name), card_for(made(name))
    batch = toy_batch(card)
    with torch.no_grad():
        answer = task.predict(ToyEncoder(), batch)
    assert isinstance(answer, Prediction | Features)
    assert answer.tensor.dtype == torch.float32
    assert len(answer.tensor) == len(batch)
    if (metrics := task.metrics("toy")) is not None:
        metrics.update(answer.tensor, task.value(batch) if isinstance(task, SupervisedTask) else None)
        values = metrics.compute()
        assert task.main_metric is None or task.main_metric in values


@pytest.mark.parametrize("name", SCORED)
def test_a_perfect_prediction_has_a_perfect_main_metric(name):
    task, card = built(name), card_for(made(name))
    value = toy_batch(card).targets[task.target_names["toy"]]
    metrics = task.metrics("toy")
    is_class = value.dtype == torch.int64
    metrics.update(F.one_hot(value, 3).movedim(-1, 1).float() if is_class else value, value)
    assert float(metrics.compute()[task.main_metric]) == 1


@pytest.mark.parametrize("name", TASKS)
def test_wrong_arguments_are_input_errors(name):
    cls = discover.find("tasks", name).load()
    given = {n: GIVEN[n] for n in inspect.signature(cls).parameters if n in GIVEN}
    with pytest.raises(InputError, match="datasets is empty"):
        cls(datasets=[], **given)
    with pytest.raises(InputError, match="loss_weight"):
        cls(datasets=["toy"], loss_weight=0, **given)


# --------------------------------------------------------------------------------- from raw files to published heads

SAMPLES = {"volume": {"patch_size": [16, 16, 16]}, "video": {"num_frames": 8, "crop_size": 16, "short_side": 16}}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of each medium, with a target of each type that it can have, from raw samples to shards."""
    root = tmp_path_factory.mktemp("shards")
    clips = Toy(kind="video_classification", num_train=2, num_val=2, size=16, num_frames=8)
    for medium, dataset in (("volume", ToyScans(toy_card())), ("video", clips)):
        build_shards(dataset, root / medium, progress=False)
    return root


def in_a_run(name: str, shards: Path) -> tuple[MultiTaskModule, DataModule, dict]:
    """A module over a real net and one set of shards, its data, and the config that makes both."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    cls = discover.find("tasks", name).load()
    medium = (*cls.media, "volume")[0]
    given = {"datasets": [medium], **{n: GIVEN[n] for n in inspect.signature(cls).parameters if n in GIVEN}}
    backbone = {"name": "test_resnet", "norm": "group", "timm_kwargs": {"output_stride": 8}}
    sets = {medium: {"batch_size": 2, "sample": SAMPLES[medium]}}
    data = DataModule(str(shards), sets, num_workers=0).prepare()
    module = MultiTaskModule(BackboneConfig(**backbone), {"own": cls(**given)})
    module.build({medium: data.manifests[medium].card}).windows.update(data.windows)
    tasks = {"own": {"class_path": cls.__name__, "init_args": given}}
    return module, data, {"model": {"backbone": backbone, "tasks": tasks}, "data": {"datasets": sets}}


def published(module: MultiTaskModule, config: dict, folder: Path) -> Path:
    """What `platform publish --heads` makes of a run that ends here."""
    write_config(folder / "run", config)
    state: dict[str, object] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(state)
    write_checkpoint(folder / "run" / "checkpoints", 1, lambda p: torch.save(state, p), score=None, metrics={})
    return Path(publish_run(folder / "run", str(folder / "out"), with_heads=True).folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_from_shards_to_a_step_metrics_a_picture_and_the_published_head(name, shards, tmp_path):
    module, data, config = in_a_run(name, shards)
    task, (medium,) = module.tasks["own"], data.manifests
    # One step, which teaches the backbone too.
    batch = next(iter(data.train_dataloader()))
    values = task.step(module.backbone, batch, seed=1)
    values["loss"].backward()
    assert all(value.isfinite().all() for value in values.values())
    assert any(p.grad is not None and p.grad.any() for p in module.backbone.parameters())
    # What is measured on held-out data.
    module.eval()
    with torch.no_grad():
        for held_out in data.val_dataloader():
            module.validation_step(held_out, 0)
    found = module.scores.compute([("own", medium)])
    wanted = task.measured if task.main_metric is None else (task.main_metric,)
    assert all(math.isfinite(found[f"own/{medium}/{key}"]) for key in wanted)
    # What a person sees.
    (picture,) = predict_some(module, data, per_dataset=1)
    assert picture.key.startswith(("case_", "val_"))
    shown = [p.image_CDHW for p in picture.exhibit.panels] if isinstance(picture, Shown) else [picture.answer]
    assert shown
    assert all(image.isfinite().all() for image in shown)
    # What stays: its head, read back from a publication, answers as it did.
    heads = {n: m for n, m in task.modules().items() if n == medium and isinstance(m, Head)}
    folder = published(module, config, tmp_path)
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))["heads"]
    assert set(described) == set(heads)
    with torch.no_grad():
        features = module.backbone(batch.image, domain=medium)
        for own, head in heads.items():
            again = load_head(folder, own, described[own], module.backbone.feature_info, check_files(folder))
            torch.testing.assert_close(again.eval()(features), head(features))


def test_label_smoothing_dropout_and_scale_are_checked():
    for cls in (VideoAction, VolumeClassification):
        with pytest.raises(InputError, match=rf"{cls.__name__}: label_smoothing is 1\.5"):
            cls(datasets=["toy"], label_smoothing=1.5)
    with pytest.raises(InputError, match="Regression: scale is 0"):
        Regression(datasets=["toy"], scale=0)
    assert (VideoAction(datasets=["toy"]).dropout, VolumeClassification(datasets=["toy"]).dropout) == (0.5, 0.0)


def test_decoder_channels_must_match_the_levels():
    with pytest.raises(InputError, match="3 widths; the backbone has 2 levels"):
        built("medical_segmentation", decoder_channels=[8, 8, 8])


def test_a_task_takes_its_medium_and_the_target_that_it_is_told():
    with pytest.raises(InputError, match="VideoAction takes video; dataset 'toy' holds volume"):
        bound(VideoAction(datasets=["toy"]), toy_card())
    two = toy_card(organ=ClassTarget(("a", "b")), side=ClassTarget(("left", "right", "none")))
    with pytest.raises(InputError, match=r"has 2: organ, side\. Name one: datasets: \{toy: organ\}"):
        bound(VolumeClassification(datasets=["toy"]), two)
    task = bound(VolumeClassification(datasets={"toy": "side"}), two)
    assert task.heads["toy"].linear.out_features == 3
    with pytest.raises(InputError, match="needs a MaskTarget; targets of dataset 'toy': organ: 2 classes: a, b"):
        bound(MedicalSegmentation(datasets=["toy"]), two)
