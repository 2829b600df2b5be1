"""What a backbone's frozen features answer on a target: its statistics, features and setting chosen before the test."""

from __future__ import annotations

from typing import Any

import torch

from inflate3d.evaluation.transfer import probes
from inflate3d.evaluation.transfer.features import READS, TARGET, FeatureCache, Part, Stored, origin_of
from inflate3d.evaluation.transfer.held_out import AnswerBook, score
from inflate3d.evaluation.transfer.protocol import Mode, digest
from inflate3d.evaluation.transfer.target import Target
from inflate3d.models import Backbone
from inflate3d.nn.recalibrate import batch_norms, recalibrating

Statistics = str  # "own": BatchNorm as loaded or trained; "recalibrated": on unlabelled training data
OWN, RECALIBRATED = "own", "recalibrated"
Frozen = dict[Statistics, dict[str, Stored]]


def frozen_features(backbone: Backbone, target: Target, cache: FeatureCache) -> Frozen:
    """Return features of the training, choice and test samples under both statistics; the backbone keeps the latter."""
    parts: dict[str, Part] = {
        "train": (target.needed(), "train"),
        "choice": (target.choice, "train"),
        "test": (target.test, target.test_split),
    }
    origin = origin_of(backbone.eval())
    found = {OWN: cache.features(backbone, target, parts, origin=origin)}
    if batch_norms(backbone):
        origin = digest(origin, RECALIBRATED, target.protocol.fixed(), target.manifest.digest)
        found[RECALIBRATED] = cache.features(
            backbone, target, parts, origin=origin, prepare=lambda: recalibrate(backbone, target)
        )
    return found


def recalibrate(backbone: Backbone, target: Target) -> None:
    """Replace the running statistics by those of a target's unlabelled training data."""
    device = next(backbone.parameters()).device
    with recalibrating(backbone):
        for batch in target.unlabelled_batches():
            backbone(batch.image.to(device), domain=batch.dataset)


def measure_frozen(target: Target, found: Frozen, *, mode: Mode, fraction: float, seed: int) -> dict[str, Any]:
    """Choose features, statistics and setting on the choice samples; then read the test samples.

    Each other pair of statistics and features, at its own best setting, is measured too and reported beside.
    """
    labelled = {s.key for s in target.labelled(fraction, seed)}
    rows = torch.tensor([i for i, s in enumerate(target.needed()) if s.key in labelled])
    classes = len(target.target.names)
    choices: dict[str, dict[float, float]] = {}
    tests: dict[str, Any] = {}
    for statistics, parts in found.items():
        y, held_y, test_y = parts["train"][TARGET][rows], parts["choice"][TARGET], parts["test"][TARGET]
        for reads in READS:
            x, name = parts["train"][reads][rows], f"{statistics}, {reads}"
            fitted = {s: probes.fit(mode, x, y, classes, setting=s) for s in probes.grid(mode)}
            choices[name] = {s: score(target, f(parts["choice"][reads]), held_y) for s, f in fitted.items()}
            book = AnswerBook(target)
            book.add([s.key for s in target.test], fitted[probes.best(choices[name])](parts["test"][reads]), test_y)
            tests[name] = book.close().to_dict()
    best = max(choices, key=lambda name: max(choices[name].values()))
    return {
        "chosen": {"features": best, "setting": probes.best(choices[best])},
        "choice": {name: {f"{k:g}": v for k, v in scores.items()} for name, scores in choices.items()},
        "labels": len(labelled),
        "test": tests[best],
        "beside": {name: a["total"] for name, a in tests.items()},
    }
