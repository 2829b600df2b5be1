"""Every task, built in or plugged in, keeps the contract; and each built-in one computes what it says."""

import pytest
import torch
from inflate3d import discover
from inflate3d.contracts import DatasetCard, Features
from inflate3d.errors import InputError
from inflate3d.sample import Batch

TASKS = sorted(discover.plug_ins("tasks"))
SIZE = (8, 12, 10)


class ToyFeatureInfo:
    num_pooled = 6

    def channels(self):
        return [4, 6]

    def reduction_dhw(self):
        return [(1, 2, 2), (2, 4, 4)]


def toy_features(batch: int) -> Features:
    maps = [torch.randn(batch, 4, 8, 6, 5), torch.randn(batch, 6, 4, 3, 3)]
    return Features(maps=maps, pooled=torch.randn(batch, 6), size=SIZE)


def toy_card(kind: str, classes: tuple[str, ...] = ("background", "left part", "right")) -> DatasetCard:
    return DatasetCard("toy", kind, "Toy", "ct", classes, "https://x.y", "MIT", True, True, "none")


def toy_batch(kind: str, batch: int = 3) -> Batch:
    shape = (batch, *SIZE) if kind == "volume_segmentation" else (batch,)
    return Batch(
        image=torch.zeros(batch, 1, *SIZE),
        target=torch.arange(torch.Size(shape).numel()).view(shape) % 3,
        keys=[f"k{i}" for i in range(batch)],
        dataset="toy",
        task="t",
        spacing_mm=torch.ones(batch, 3),
    )


def built(name: str, **options):
    task = discover.find("tasks", name).load()(datasets=["toy"], **options)
    task.heads = torch.nn.ModuleDict({"toy": task.build_head(ToyFeatureInfo(), toy_card(task.kind))})
    return task


def test_the_three_tasks_are_found():
    assert {"video_action", "medical_segmentation", "volume_classification"} <= set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_loss_falls_when_one_batch_is_fitted(name):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    task = built(name)
    features, batch = toy_features(3), toy_batch(task.kind)
    optimizer = torch.optim.Adam(task.heads.parameters(), lr=0.02)
    losses = []
    for _ in range(15):
        loss = task.loss(features, batch)["loss"]
        assert loss.ndim == 0
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", TASKS)
def test_predictions_are_probabilities_and_feed_the_metrics(name):
    task = built(name)
    batch = toy_batch(task.kind)
    with torch.no_grad():
        probabilities = task.predict(toy_features(3), batch).probabilities
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones_like(probabilities[:, 0]))
    metrics = task.metrics(toy_card(task.kind))
    metrics.update(probabilities, batch.target)
    values = metrics.compute()
    assert task.main_metric in values
    assert all(0 <= float(v) <= 1 for v in values.values())


@pytest.mark.parametrize("name", TASKS)
def test_a_perfect_prediction_has_a_perfect_main_metric(name):
    task = built(name)
    batch = toy_batch(task.kind)
    metrics = task.metrics(toy_card(task.kind))
    metrics.update(torch.nn.functional.one_hot(batch.target, 3).movedim(-1, 1).float(), batch.target)
    assert float(metrics.compute()[task.main_metric]) == 1


@pytest.mark.parametrize("name", TASKS)
def test_every_parameter_of_the_head_gets_a_gradient(name):
    task = built(name)
    task.loss(toy_features(3), toy_batch(task.kind))["loss"].backward()
    assert all(p.grad is not None for p in task.heads.parameters())


@pytest.mark.parametrize("name", TASKS)
def test_wrong_arguments_are_input_errors(name):
    task_class = discover.find("tasks", name).load()
    with pytest.raises(InputError, match="datasets is empty"):
        task_class(datasets=[])
    with pytest.raises(InputError, match="loss_weight"):
        task_class(datasets=["toy"], loss_weight=0)


def test_label_smoothing_and_dropout_are_checked():
    for name in ("video_action", "volume_classification"):
        task_class = discover.find("tasks", name).load()
        with pytest.raises(InputError, match=r"label_smoothing is 1\.5"):
            task_class(datasets=["toy"], label_smoothing=1.5)


def test_decoder_channels_must_match_the_levels():
    with pytest.raises(InputError, match="3 widths; the backbone has 2 levels"):
        built("medical_segmentation", decoder_channels=[8, 8, 8])


def test_top5_is_reported_only_above_five_classes():
    task = discover.find("tasks", "video_action").load()(datasets=["toy"])
    few = task.metrics(toy_card(task.kind))
    many = task.metrics(toy_card(task.kind, classes=tuple("abcdefg")))
    assert "top5" not in few
    assert "top5" in many


def test_dice_is_averaged_over_volumes_and_skips_what_is_absent():
    from inflate3d.nn.metrics import VolumeDice

    metric = VolumeDice(["background", "left part", "right"])
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
    task = discover.find("tasks", "video_action").load()(datasets=["toy"])
    probabilities, target = torch.rand(20, 3), torch.arange(20) % 3
    metrics = task.metrics(toy_card(task.kind))
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
    from inflate3d.nn import soft_dice_loss

    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 2, 3, 4), torch.randint(0, 3, (2, 2, 3, 4))
    p = logits.softmax(1)
    expected = []
    for k in (1, 2):
        t = (target == k).float()
        expected.append(2 * (p[:, k] * t).sum() / (p[:, k].sum() + t.sum()))
    torch.testing.assert_close(soft_dice_loss(logits, target, smooth=0), 1 - torch.stack(expected).mean())
