"""val/score: the mean over tasks of the metric that each is judged by."""

from __future__ import annotations

import math

import pytest
import torch
from inflate3d.contracts import DatasetCard, InputSpec
from inflate3d.errors import InputError
from inflate3d.targets import ClassTarget
from inflate3d.tasks.video_action import VideoAction
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training.scores import Scores

CARD = DatasetCard(
    name="scans",
    media="volume",
    title="Scans",
    modality="ct",
    url="",
    licence="CC0",
    commercial_use=True,
    weights_may_be_published=True,
    citation="",
    input=InputSpec(("hu",)),
    targets={"label": ClassTarget(("benign", "malignant"))},
)
# Every scan is called benign; of the 2 x 2 pairs of a benign and a malignant one, three are in the right order.
LOGITS = torch.tensor([[4.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.5, 0.0]])
LABELS = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(("best_by", "score"), [("accuracy", 0.5), ("mean_class_accuracy", 0.5), ("auroc", 0.75)])
def test_a_classification_is_judged_by_the_metric_that_is_asked_for(best_by, score):
    task = VolumeClassification(datasets=["scans"], best_by=best_by)
    task.bind({"scans": CARD})
    scores = Scores({"gland": task})
    scores.update("gland", "scans", LOGITS.softmax(1), LABELS)
    found = scores.compute([("gland", "scans")])
    assert math.isclose(found["score"], score)
    assert math.isclose(found["gland/scans/auroc"], 0.75)


def test_a_metric_that_is_none_of_the_task_is_refused():
    with pytest.raises(InputError, match="VideoAction: best_by: unknown metric 'dice'; allowed: 'accuracy', 'auroc'"):
        VideoAction(datasets=["clips"], best_by="dice")
