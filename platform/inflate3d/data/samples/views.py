"""Views of one sample: the same members through a stage each, with draws of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from inflate3d.contracts import DatasetCard, Stage, medium_of
from inflate3d.data.samples.augment import AugmentSpec
from inflate3d.data.samples.options import view_options
from inflate3d.data.shards.members import check_members
from inflate3d.sample import IMAGE, Sample
from inflate3d.seeds import mix


def make_stage(
    card: DatasetCard,
    options: Mapping[str, Any],
    *,
    training: bool,
    augment: AugmentSpec | None = None,
    views: Mapping[str, Mapping[str, Any]] | None = None,
    where: str = "data",
) -> Stage:
    """Return what makes samples of a dataset: one view, "image", or in training those that `views` names.

    views: {NAME: {sample: options that differ, augment: transforms in place of the dataset's}}; targets come with
    "image", or the first where none has that name. Evaluation always sees "image" alone. Augmentation is built in
    training only. InputError begins with `where`.
    """
    medium = medium_of(card)
    views = views if training else None
    stages = {}
    for name, checked in view_options(card, options, views, where=where).items():
        own = (views or {}).get(name, {}).get("augment", augment)
        told = f"{where}.views.{name}" if views else where
        stages[name] = medium.stage(checked, card, training=training, augment=own, where=told)
    return Views(stages, card)


class Views:
    """A stage of one or several views, which looks at the members first: InputError, never a crash, whatever comes."""

    def __init__(self, stages: Mapping[str, Stage], card: DatasetCard) -> None:
        self.stages, self.card = dict(stages), card

    def __call__(self, key: str, members: Mapping[str, Any], seed: int, out: Tensor | None = None) -> Sample:
        """Return the sample with all views; the first may lie in `out`. A view's draws follow from its name."""
        check_members(key, members, self.card)
        whole: Sample | None = None
        for name, stage in self.stages.items():
            own = seed if name == IMAGE else mix(seed, "view", name)
            sample = stage(key, members, own, out if whole is None else None)
            if whole is None:
                whole = Sample(key, {name: sample.views[IMAGE]}, sample.targets, sample.spacing_mm)
            else:
                whole.views[name] = sample.views[IMAGE]
        assert whole is not None, "a stage has at least one view"
        return whole
