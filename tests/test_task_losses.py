"""Losses of tasks with labels: each equals its formula, and what is missing or was not annotated does not count."""

import pytest
import torch
from inflate3d.nn import merge_unannotated, soft_dice_loss
from inflate3d.targets import ClassTarget, MaskTarget, MultiLabelTarget, ValueTarget
from inflate3d.tasks.medical_segmentation import MedicalSegmentation
from inflate3d.tasks.multi_label import MultiLabel
from inflate3d.tasks.regression import Regression
from inflate3d.tasks.volume_classification import VolumeClassification
from torch.nn import functional as F
from toy_batches import NAMES, ToyEncoder, bound, toy_batch, toy_card


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


def test_soft_dice_loss_equals_the_formula():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 2, 3, 4), torch.randint(0, 3, (2, 2, 3, 4))
    p = logits.softmax(1)
    expected = []
    for k in (1, 2):
        t = (target == k).float()
        expected.append(2 * (p[:, k] * t).sum() / (p[:, k].sum() + t.sum()))
    torch.testing.assert_close(soft_dice_loss(logits, target, smooth=0), 1 - torch.stack(expected).mean())


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


# ------------------------------------------------------------------------------------------------------- partial labels


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
