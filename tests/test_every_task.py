"""Every task, built in or plugged in, keeps the contract; and each built-in one computes what it says."""

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
from inflate3d.nn import Head, merge_unannotated, soft_dice_loss
from inflate3d.publishing.from_run import publish_run
from inflate3d.targets import ClassTarget, MaskTarget, MultiLabelTarget, ValueTarget
from inflate3d.tasks.medical_segmentation import MedicalSegmentation
from inflate3d.tasks.multi_label import MultiLabel
from inflate3d.tasks.regression import Regression
from inflate3d.tasks.video_action import VideoAction
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import DataModule, MultiTaskModule, write_config
from inflate3d.training.checkpoints.store import write_checkpoint
from torch.nn import functional as F
from toy_batches import NAMES, ToyEncoder, ToyScans, bound, toy_batch, toy_card

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


def test_top5_is_reported_only_above_five_classes():
    few = built("video_action").metrics("toy")
    many = bound(VolumeClassification(datasets=["toy"]), toy_card(label=ClassTarget(tuple("abcdefg")))).metrics("toy")
    assert "top5" not in few
    target = torch.arange(7)
    probabilities = torch.arange(7.0).expand(7, -1)  # the five likeliest are 2 to 6
    many.update(probabilities, target)
    assert float(many.compute()["top5"]) == pytest.approx(5 / 7)
    assert float(many.compute()["accuracy"]) == pytest.approx(1 / 7)


# ------------------------------------------------------------------------------------------------- missing values


@pytest.mark.parametrize(
    ("task", "name", "target", "missing"),
    [
        (VolumeClassification(datasets=["toy"]), "label", ClassTarget(NAMES), -1),
        (VolumeClassification(datasets=["toy"], label_smoothing=0.1), "label", ClassTarget(NAMES), -1),
        (Regression(datasets=["toy"], scale=3), "age", ValueTarget("years"), float("nan")),
        (MultiLabel(datasets=["toy"]), "findings", MultiLabelTarget(NAMES), float("nan")),
    ],
)
def test_samples_whose_value_is_missing_count_neither_in_the_loss_nor_in_the_metrics(task, name, target, missing):
    torch.manual_seed(0)
    card = toy_card(**{name: target})
    bound(task, card)
    value = toy_batch(card, batch=8).targets[name]
    logits = torch.randn(8, *((3,) if target.names else ()), requires_grad=True)
    some = value.clone()
    some[[1, 4]] = missing
    kept = [0, 2, 3, 5, 6, 7]
    loss = task.loss(logits, some, target)["loss"]
    torch.testing.assert_close(loss, task.loss(logits[kept], value[kept], target)["loss"])
    loss.backward()
    assert not logits.grad[[1, 4]].any()
    whole, part = task.metrics("toy"), task.metrics("toy")
    guess = target.answer(logits.detach()).tensor
    whole.update(guess, some)
    part.update(guess[kept], value[kept])
    torch.testing.assert_close(whole.compute(), part.compute(), equal_nan=True)
    nothing = torch.full_like(value, missing)
    logits.grad = None
    loss = task.loss(logits, nothing, target)["loss"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any()
    empty = task.metrics("toy")
    empty.update(guess, nothing)
    assert all(v.isnan() for v in empty.compute().values())


def test_labels_that_are_missing_alone_do_not_count():
    logits = torch.randn(3, 2)
    value = torch.tensor([[1.0, float("nan")], [0.0, 1.0], [float("nan"), float("nan")]])
    expected = -(F.logsigmoid(logits[0, 0]) + F.logsigmoid(-logits[1, 0]) + F.logsigmoid(logits[1, 1])) / 3
    target = MultiLabelTarget(("a", "b"))
    torch.testing.assert_close(MultiLabel(datasets=["t"]).loss(logits, value, target)["loss"], expected)


def test_with_nothing_missing_the_losses_are_torchs_own_bit_for_bit():
    torch.manual_seed(0)
    logits, target = torch.randn(4, 3, 2, 3, 4, requires_grad=True), torch.randint(0, 3, (4, 2, 3, 4))
    ours = MedicalSegmentation(datasets=["t"], dice_weight=0.5).loss(logits, target, MaskTarget(NAMES))["loss"]
    (gradient,) = torch.autograd.grad(ours, logits)
    plain = F.cross_entropy(logits, target) + 0.5 * soft_dice_loss(logits, target)
    assert torch.equal(ours, plain)
    assert torch.equal(gradient, torch.autograd.grad(plain, logits)[0])


# ------------------------------------------------------------------------------------------------ partial labels


def test_partial_labels_equal_the_formula():
    torch.manual_seed(0)
    names = ("background", "liver", "spleen", "kidney")
    target = MaskTarget(names, annotated=("liver", "kidney"))
    assert target.unannotated == (2,)
    logits = torch.randn(2, 4, 2, 3, 4, requires_grad=True)
    value = torch.tensor([0, 1, 3])[torch.randint(0, 3, (2, 2, 3, 4))]
    p = logits.softmax(1)
    of_truth = torch.stack([p[:, 0] + p[:, 2], p[:, 1], torch.zeros_like(p[:, 2]), p[:, 3]], 1).gather(
        1, value[:, None]
    )
    cross_entropy = -of_truth.log().mean()
    dice = []
    for k in (1, 3):
        t = (value == k).float()
        dice.append((2 * (p[:, k] * t).sum() + 1e-5) / (p[:, k].sum() + t.sum() + 1e-5))
    expected = cross_entropy + 1 - torch.stack(dice).mean()
    loss = MedicalSegmentation(datasets=["t"]).loss(logits, value, target)["loss"]
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(one, logits, retain_graph=True)[0] for one in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_classes_that_were_not_looked_for_are_left_out_of_the_metric():
    target = MaskTarget(NAMES, annotated=("left part",))
    task = bound(MedicalSegmentation(datasets=["toy"]), toy_card(mask=target))
    metrics = task.metrics("toy")
    value = torch.tensor([0, 1, 0, 1]).view(1, 1, 1, 4)
    guess = torch.tensor([2, 1, 2, 2]).view(1, 1, 1, 4)
    metrics.update(F.one_hot(guess, 3).movedim(-1, 1).float(), value)
    assert metrics.compute() == {"dice": pytest.approx(2 / 3), "dice_left_part": pytest.approx(2 / 3)}
    with pytest.raises(InputError, match="nothing but background is annotated"):
        bound(MedicalSegmentation(datasets=["toy"]), toy_card(mask=MaskTarget(NAMES, annotated=("background",))))


def test_merged_logits_keep_every_probability():
    torch.manual_seed(0)
    logits, value = torch.randn(2, 5, 3), torch.randint(0, 5, (2, 3))
    merged, moved = merge_unannotated(logits, value, (1, 3))
    p, q = logits.softmax(1), merged.softmax(1)
    torch.testing.assert_close(q, torch.stack([p[:, [0, 1, 3]].sum(1), p[:, 2], p[:, 4]], 1))
    assert torch.equal(moved, torch.tensor([0, 0, 1, 0, 2])[value])
    same, kept = merge_unannotated(logits, value, ())
    assert same is logits
    assert kept is value


# -------------------------------------------------------------------------------------------------------- metrics


def test_errors_of_values_equal_the_formulas_over_batches():
    torch.manual_seed(0)
    task = bound(Regression(datasets=["toy"], scale=10), toy_card(age=ValueTarget("years")))
    metrics, truth = task.metrics("toy"), 50 + 20 * torch.randn(30)
    guess = truth + torch.randn(30)
    metrics.update(guess[:11], truth[:11])
    metrics.update(guess[11:], truth[11:])
    found = metrics.compute()
    assert float(found["mae"]) == pytest.approx(float((guess - truth).abs().mean()), rel=1e-6)
    r2 = 1 - (guess - truth).square().sum() / (truth - truth.mean()).square().sum()
    assert float(found["r2"]) == pytest.approx(float(r2), rel=1e-5)
    flat = task.metrics("toy")
    flat.update(guess, torch.full((30,), 7.0))
    assert flat.compute()["r2"].isnan()


def test_a_regressions_head_answers_in_the_targets_unit():
    task = bound(Regression(datasets=["toy"], scale=10, centre=60), toy_card(age=ValueTarget("years")))
    head = task.heads["toy"]
    torch.nn.init.zeros_(head.linear.weight)
    torch.nn.init.constant_(head.linear.bias, -1.5)
    with torch.no_grad():
        answer = task.predict(ToyEncoder(), toy_batch(toy_card(age=ValueTarget("years"))))
    assert answer.tensor.tolist() == [45.0, 45.0, 45.0]
    loss = task.loss(answer.tensor, torch.tensor([45.0, 65.0, float("nan")]), task.target_of("toy"))["loss"]
    assert float(loss) == pytest.approx((0 + 2.0**2) / 2)


def test_the_area_of_labels_equals_torchmetrics_and_leaves_out_what_is_unknown():
    from torchmetrics.functional.classification import binary_auroc

    torch.manual_seed(0)
    names = ("a", "b", "never")
    metrics = bound(MultiLabel(datasets=["toy"]), toy_card(findings=MultiLabelTarget(names))).metrics("toy")
    probabilities, truth = torch.rand(20, 3), (torch.rand(20, 3) > 0.5).float()
    truth[:, 2], truth[3:6, 1] = 0, float("nan")
    metrics.update(probabilities[:7], truth[:7])
    metrics.update(probabilities[7:], truth[7:])
    known = ~truth[:, 1].isnan()
    a = binary_auroc(probabilities[:, 0], truth[:, 0].long())
    b = binary_auroc(probabilities[known, 1], truth[known, 1].long())
    found = metrics.compute()
    torch.testing.assert_close(found["auroc"], (a + b) / 2)
    torch.testing.assert_close(found["auroc_b"], b)
    assert found["auroc_never"].isnan()


def test_dice_is_averaged_over_volumes_and_skips_what_is_absent():
    from inflate3d.nn.metrics import VolumeDice

    metric = VolumeDice(MaskTarget(("background", "left part", "right")))
    truth = torch.zeros(3, 1, 1, 4, dtype=torch.long)
    truth[0, 0, 0] = torch.tensor([1, 1, 0, 0])
    truth[1, 0, 0] = torch.tensor([1, 1, 1, 1])
    guess = torch.zeros_like(truth)
    guess[0, 0, 0] = torch.tensor([1, 0, 0, 0])  # class 1: 2 * 1 / (1 + 2) = 2/3
    guess[1, 0, 0] = torch.tensor([1, 1, 1, 2])  # class 1: 2 * 3 / (3 + 4) = 6/7; class 2: predicted, not there: 0
    one_hot = torch.nn.functional.one_hot(guess, 3).movedim(-1, 1).float()
    metric.update(one_hot[:1], truth[:1])
    metric.update(one_hot[1:], truth[1:])  # the third volume is all background: it says nothing
    values = metric.compute()
    assert values["dice_left_part"].item() == pytest.approx((2 / 3 + 6 / 7) / 2)
    assert values["dice_right"].item() == 0
    assert values["dice"].item() == pytest.approx((2 / 3 + 6 / 7) / 4)


def test_mean_class_accuracy_equals_torchmetrics_and_leaves_out_classes_that_do_not_occur():
    from torchmetrics.functional.classification import multiclass_accuracy

    torch.manual_seed(0)
    task = built("video_action")
    probabilities, target = torch.rand(20, 3), torch.arange(20) % 3
    metrics = task.metrics("toy")
    metrics.update(probabilities[:7], target[:7])
    metrics.update(probabilities[7:], target[7:])
    torch.testing.assert_close(metrics.compute()["mean_class_accuracy"], multiclass_accuracy(probabilities, target, 3))
    metrics.reset()
    guess = torch.tensor([0, 2, 1, 1])  # class 0: one of two; class 1: two of two; class 2 is guessed, never there
    metrics.update(torch.nn.functional.one_hot(guess, 3).float(), torch.tensor([0, 0, 1, 1]))
    assert metrics.compute()["mean_class_accuracy"].item() == 0.75


def test_the_roc_area_equals_torchmetrics_and_leaves_out_absent_classes():
    from inflate3d.nn.metrics import RocArea
    from torchmetrics.functional.classification import binary_auroc, multiclass_auroc

    torch.manual_seed(0)
    probabilities, target = torch.rand(20, 3).softmax(1), torch.arange(20) % 3
    ours = RocArea(3)
    ours.update(probabilities[:7], target[:7])
    ours.update(probabilities[7:], target[7:])
    torch.testing.assert_close(ours.compute(), multiclass_auroc(probabilities, target, 3))
    two = RocArea(3)
    two.update(probabilities, target % 2)
    expected = [binary_auroc(probabilities[:, k], (target % 2 == k).long()) for k in (0, 1)]
    torch.testing.assert_close(two.compute(), sum(expected) / 2)
    one = RocArea(3)
    one.update(probabilities, target * 0)
    assert one.compute().isnan()


def test_soft_dice_loss_equals_the_formula():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 2, 3, 4), torch.randint(0, 3, (2, 2, 3, 4))
    p = logits.softmax(1)
    expected = []
    for k in (1, 2):
        t = (target == k).float()
        expected.append(2 * (p[:, k] * t).sum() / (p[:, k].sum() + t.sum()))
    torch.testing.assert_close(soft_dice_loss(logits, target, smooth=0), 1 - torch.stack(expected).mean())
