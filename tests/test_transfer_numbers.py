"""The numbers of a transfer: intervals, paired differences and the frozen probes, against what is known of them."""

import math

import numpy as np
import pytest
import torch
from inflate3d.evaluation.transfer.intervals import AreaScore, Bootstrap, MeanScore, score_of
from inflate3d.evaluation.transfer.probes import fit, linear_probe, nearest_neighbours
from inflate3d.evaluation.transfer.report import comparisons, gains, verdicts
from inflate3d.nn.metrics import RocArea


def test_a_bootstrap_interval_of_a_proportion_is_the_binomials():
    right = np.zeros((1, 400))
    right[0, :280] = 1
    found = Bootstrap(1, 400).interval(MeanScore(right))
    half = 1.96 * math.sqrt(0.7 * 0.3 / 400)
    assert found.value == pytest.approx(0.7)
    assert (found.low, found.high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.006)


def test_spread_over_seeds_widens_the_interval():
    same, spread = np.tile([0.0, 1.0], (4, 50)), np.tile([0.0, 1.0], (4, 50))
    spread[:2], spread[2:] = 0.2, 0.8
    draws = Bootstrap(4, 100)
    widths = [(i := draws.interval(MeanScore(v))).high - i.low for v in (same, spread)]
    assert widths[0] == pytest.approx(0.2, abs=0.03)
    assert widths[1] > 0.5


def test_a_mean_leaves_out_samples_that_say_nothing():
    assert Bootstrap(1, 3).interval(MeanScore(np.array([[0.5, np.nan, 1.0]]))).value == pytest.approx(0.75)


def test_a_metric_is_resampled_only_in_a_form_that_gives_its_own_value():
    parts = {"dice_a": [0.2, None, 0.4], "dice_b": [1.0, 0.8, 0.6]}
    record = {"keys": ["x", "y", "z"], "per_sample": {"dice": [0.6, 0.8, 0.5], **parts}}
    totals = {"dice": (0.3 + 0.8) / 2, "dice_a": 0.3, "dice_b": 0.8}
    once = np.ones((1, 1)), np.ones((1, 3))
    score = score_of("dice", [{**record, "total": totals}])
    assert score is not None
    assert score(*once)[0] == pytest.approx(totals["dice"])
    assert score_of("dice", [{**record, "total": {**totals, "dice": 0.9}}]) is None


def test_paired_differences_see_what_separate_intervals_hide():
    generator = np.random.default_rng(0)
    hard = generator.random((1, 200))
    better = hard + 0.02
    draws = Bootstrap(1, 200)
    found = draws.difference(MeanScore(better), MeanScore(hard))
    assert (found.value, found.low, found.high) == pytest.approx((0.02, 0.02, 0.02))
    assert found.p < 0.01
    assert draws.interval(MeanScore(better)).low < draws.interval(MeanScore(hard)).high
    assert draws.difference(MeanScore(hard), MeanScore(hard)).p == 1


def test_the_area_under_the_curve_equals_that_of_the_tasks_metric():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(40, 3, generator=generator).mul(5).round().div(5)  # with ties
    target = torch.randint(0, 3, (40,), generator=generator)
    metric = RocArea(3)
    metric.update(probabilities, target)
    score = AreaScore(probabilities[None].double().numpy(), target.numpy())
    assert Bootstrap(1, 40).interval(score).value == pytest.approx(float(metric.compute()), abs=1e-6)
    kept = np.random.default_rng(1).integers(0, 40, 40)
    metric.reset()
    metric.update(probabilities[kept], target[kept])
    counts = np.bincount(kept, minlength=40)[None].astype(float)
    assert score(np.ones((1, 1)), counts)[0] == pytest.approx(float(metric.compute()), abs=1e-6)


def test_a_linear_probe_finds_the_optimum_of_its_objective():
    generator = torch.Generator().manual_seed(0)
    features = torch.cat([torch.randn(60, 4, generator=generator), torch.full((60, 1), 7.0)], dim=1)
    target = (features[:, 0] + 0.5 * torch.randn(60, generator=generator) > 0).long()
    predict = linear_probe(features, target, 2, penalty=0.1)
    shifted = features * torch.tensor([3.0, 1.0, 0.1, 2.0, 1.0]) + 5  # standardised away
    again = linear_probe(shifted, target, 2, penalty=0.1)
    assert torch.allclose(predict(features), again(shifted), atol=1e-3)
    # At the optimum the bias's gradient is 0: mean probabilities are the class shares.
    assert torch.allclose(predict(features).mean(0), torch.bincount(target) / 60, atol=1e-3)
    assert (predict(features).argmax(1) == target).float().mean() > 0.8


def test_one_nearest_neighbour_is_the_class_of_the_closest():
    generator = torch.Generator().manual_seed(0)
    known, asked = torch.randn(30, 5, generator=generator), torch.randn(10, 5, generator=generator)
    target = torch.randint(0, 3, (30,), generator=generator)
    scaled = (known - known.mean(0)) / known.std(0, correction=0)
    at = (asked - known.mean(0)) / known.std(0, correction=0)
    closest = torch.cosine_similarity(at[:, None], scaled[None], dim=2).argmax(1)
    assert torch.equal(nearest_neighbours(known, target, 3, neighbours=1)(asked).argmax(1), target[closest])
    assert torch.allclose(fit("knn", known, target, 3, setting=50)(asked).sum(1), torch.ones(10))


def test_several_architectures_are_told_as_gains_over_their_own_scratch():
    def row(arm: str, **against: dict) -> dict:
        return {"mode": "probe", "fraction": 0.1, "arm": arm, "metric": "accuracy", "labels": 9, "against": against}

    up, level = ({"value": v, "low": v - 0.1, "high": v + 0.1, "p": 0.5} for v in (0.2, 0.0))
    rows = [row("scratch a"), row("inflated a", **{"scratch a": up, "scratch b": up})]
    assert gains(rows, "probe") == []
    rows += [row("scratch b"), row("inflated b", **{"scratch b": level}), row("ours", **{"scratch a": up})]
    assert [(g["name"], g["scratch"]["arm"], g["gain"]) for g in gains(rows, "probe")] == [
        ("a", "scratch a", up),
        ("b", "scratch b", level),
    ]
    pairs = [(each["arm"], other) for each, other, _ in comparisons(rows)]
    assert pairs == [("inflated a", "scratch a"), ("inflated b", "scratch b"), ("ours", "scratch a")]
    assert verdicts(rows)[0] == [
        "Frozen linear probe, 10% of labels: of 2 architectures inflated is above scratch in 1, below in 0 and not "
        "distinguishable in 1; gains +0.000 to +0.200 accuracy, median +0.100.",
        "Frozen linear probe, 10% of labels: ours is above scratch a: +0.200 accuracy (95 % interval +0.100 to +0.300, "
        "p 0.500).",
    ]
