"""Validations that deceive are told of: a class that is never found, and a score of few cases."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from inflate3d.training.steering.score_watch import ScoreWatch, few_cases

ANTERIOR, POSTERIOR = (f"val/organ/brain/dice_{name}" for name in ("Anterior", "Posterior"))


def test_a_class_that_is_not_found_twice_on_end_is_told_once_also_across_a_resume():
    watch = ScoreWatch()
    others = {"val/organ/brain/dice": 0.0, "val/gland/scan/accuracy": 0.0, "train/dice_Anterior": 0.0}
    assert watch.judge({ANTERIOR: 0.5, POSTERIOR: 0.0, **others}) == []
    resumed = ScoreWatch()
    resumed.load_state_dict(watch.state_dict())
    (told,) = resumed.judge({ANTERIOR: 0.5, POSTERIOR: 0.0, **others})
    assert told.startswith(f"{POSTERIOR} is below 0.01 for the second time: the net finds none of this class")
    assert resumed.judge({ANTERIOR: 0.5, POSTERIOR: 0.0}) == []
    assert resumed.judge({ANTERIOR: 0.0, POSTERIOR: 0.1}) == []
    assert [line.split()[0] for line in resumed.judge({ANTERIOR: 0.0, POSTERIOR: 0.0})] == [ANTERIOR]
    assert [line.split()[0] for line in resumed.judge({ANTERIOR: 0.1, POSTERIOR: 0.0})] == [POSTERIOR]


def test_a_class_that_the_last_validation_does_not_find_is_told_at_the_end():
    watch = ScoreWatch()
    watch.judge({ANTERIOR: 0.0, POSTERIOR: 0.6})
    watch.judge({ANTERIOR: 0.7, POSTERIOR: 0.004, "val/organ/brain/dice": 0.0})
    resumed = ScoreWatch()
    resumed.load_state_dict(watch.state_dict())
    (told,) = resumed.left()
    assert told.startswith(f"{POSTERIOR} ends below 0.01: the net finds none of this class, whatever the mean says")
    resumed.judge({ANTERIOR: 0.7, POSTERIOR: 0.02})
    assert resumed.left() == []


def test_datasets_whose_few_cases_choose_the_best_checkpoint_are_named():
    def held(samples: int) -> Any:
        return SimpleNamespace(num_samples=lambda split: samples)

    names = {"glands": 28, "brains": 400, "scans": 400, "unlabelled": 5, "empty": 0}
    data = SimpleNamespace(
        manifests={name: held(count) for name, count in names.items()},
        datasets={name: SimpleNamespace(max_eval_samples=10 if name == "scans" else None) for name in names},
    )
    tasks = {"gland": SimpleNamespace(main_metric="accuracy"), "hidden": SimpleNamespace(main_metric=None)}
    module = SimpleNamespace(
        tasks=tasks, tasks_of={name: ["hidden"] if name == "unlabelled" else ["gland", "hidden"] for name in names}
    )
    told = few_cases(module, data, 30)
    assert told.startswith("few validation cases: glands 28, scans 10. ")
    assert "one of 10 moves a score by up to 0.1;" in told
    assert few_cases(module, data, 10) == ""
