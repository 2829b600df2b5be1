"""Metrics of tasks with labels: each equals its formula over any batches, and leaves out what is not known."""

import pytest
import torch
from inflate3d.errors import InputError
from inflate3d.nn.metrics import RocArea, VolumeDice
from inflate3d.targets import ClassTarget, MaskTarget, MultiLabelTarget, ValueTarget
from inflate3d.tasks.medical_segmentation import MedicalSegmentation
from inflate3d.tasks.multi_label import MultiLabel
from inflate3d.tasks.regression import Regression
from inflate3d.tasks.video_action import VideoAction
from inflate3d.tasks.volume_classification import VolumeClassification
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc, multiclass_accuracy, multiclass_auroc
from toy_batches import NAMES, bound, toy_card


def test_top5_is_reported_only_above_five_classes():
    few = bound(VideoAction(datasets=["toy"]), toy_card(media="video")).metrics("toy")
    many = bound(VolumeClassification(datasets=["toy"]), toy_card(label=ClassTarget(tuple("abcdefg")))).metrics("toy")
    assert "top5" not in few
    target = torch.arange(7)
    probabilities = torch.arange(7.0).expand(7, -1)  # the five likeliest are 2 to 6
    many.update(probabilities, target)
    assert float(many.compute()["top5"]) == pytest.approx(5 / 7)
    assert float(many.compute()["accuracy"]) == pytest.approx(1 / 7)


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


def test_the_area_of_labels_equals_torchmetrics_and_leaves_out_what_is_unknown():
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
    metric = VolumeDice(MaskTarget(("background", "left part", "right")))
    truth = torch.zeros(3, 1, 1, 4, dtype=torch.long)
    truth[0, 0, 0] = torch.tensor([1, 1, 0, 0])
    truth[1, 0, 0] = torch.tensor([1, 1, 1, 1])
    guess = torch.zeros_like(truth)
    guess[0, 0, 0] = torch.tensor([1, 0, 0, 0])  # class 1: 2 * 1 / (1 + 2) = 2/3
    guess[1, 0, 0] = torch.tensor([1, 1, 1, 2])  # class 1: 2 * 3 / (3 + 4) = 6/7; class 2: predicted, not there: 0
    one_hot = F.one_hot(guess, 3).movedim(-1, 1).float()
    metric.update(one_hot[:1], truth[:1])
    metric.update(one_hot[1:], truth[1:])  # the third volume is all background: it says nothing
    values = metric.compute()
    assert values["dice_left_part"].item() == pytest.approx((2 / 3 + 6 / 7) / 2)
    assert values["dice_right"].item() == 0
    assert values["dice"].item() == pytest.approx((2 / 3 + 6 / 7) / 4)


def test_mean_class_accuracy_equals_torchmetrics_and_leaves_out_classes_that_do_not_occur():
    torch.manual_seed(0)
    task = bound(VideoAction(datasets=["toy"]), toy_card(media="video"))
    probabilities, target = torch.rand(20, 3), torch.arange(20) % 3
    metrics = task.metrics("toy")
    metrics.update(probabilities[:7], target[:7])
    metrics.update(probabilities[7:], target[7:])
    torch.testing.assert_close(metrics.compute()["mean_class_accuracy"], multiclass_accuracy(probabilities, target, 3))
    metrics.reset()
    guess = torch.tensor([0, 2, 1, 1])  # class 0: one of two; class 1: two of two; class 2 is guessed, never there
    metrics.update(F.one_hot(guess, 3).float(), torch.tensor([0, 0, 1, 1]))
    assert metrics.compute()["mean_class_accuracy"].item() == 0.75


def test_the_roc_area_equals_torchmetrics_and_leaves_out_absent_classes():
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
