"""One member of an ensemble: a model's head that answers for a case, also for its mirror images."""

# B batch, K classes, D H W voxels along z y x.

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import torch

from inflate3d.contracts import AbstractTarget, DatasetCard, medium_of
from inflate3d.data.samples.boxes import centre
from inflate3d.data.samples.views import make_stage
from inflate3d.errors import InputError
from inflate3d.evaluation.prediction.answerers import Answer, Answerer, Answering
from inflate3d.sample import Batch, Sample, Triple

_HALF = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
_AXES = "DHW"
_ENDS = (
    ("LR", "left", "right"),
    ("AP", "anterior", "posterior"),
    ("SI", "superior", "inferior"),
    ("SI", "upper", "lower"),
)


class Member:
    """A head that is ready to answer."""

    def __init__(self, answerer: Answerer, name: str, device: torch.device, *, features: bool) -> None:
        self.answerer, self.name, self.head, self.device = answerer, name, answerer.heads[name], device
        unlabelled, options = replace(self.head.card, targets={}), answerer.sample(name)
        self.stage = make_stage(unlabelled, options, training=False, where=f"data.datasets.{self.head.dataset}")
        answerer.prepare(name, device, features=features)

    def warn(self, key: str, record: Mapping[str, Any]) -> None:
        """Log where a case is far outside of what this head was trained on."""
        if self.head.seen is not None:
            self.head.seen.warn(record, self.head.card.input.intensity, where=key, weights=self.name)

    @torch.no_grad()
    def answer(self, key: str, members: Mapping[str, Any], axes: str = "") -> Answer:
        """Return the answer for one case, float32, as validation would see it; per voxel, for the voxels read.

        axes: of D, H and W; the answers for all mirror images along them are averaged, each turned back.
        """
        sample = self.stage(key, members, 0)
        spacing_mm = torch.tensor([sample.spacing_mm])
        views = {name: view[None] for name, view in sample.views.items()}
        batch = Batch(views, {}, [sample.key], self.head.dataset, spacing_mm).to(self.device)
        with mixed_precision(self.answerer.precision, self.device):
            found = mean_of(self._mirrored(batch, dims) for dims in mirrorings(axes))
        return _without_padding(found, members, sample) if found.per_voxel else found

    def _mirrored(self, batch: Batch, dims: tuple[int, ...]) -> Answer:
        turned = replace(batch, views={name: view.flip(dims) for name, view in batch.views.items()}) if dims else batch
        answer = self.answerer.answer(turned)
        tensor = answer.tensor.float()
        return answer.like(tensor.flip(dims) if dims and answer.per_voxel else tensor)


def mean_of(answers: Iterable[Answer]) -> Answer:
    """Return the mean of answers of one kind; of one, itself. Two are in memory at a time."""
    rest = iter(answers)
    first, count, total = next(rest), 1, None
    for answer in rest:
        total = (first.tensor if total is None else total) + answer.tensor
        count += 1
    return first if total is None else first.like(total / count)


def mirrorings(axes: str) -> list[tuple[int, ...]]:
    """Return which of the last three dims to flip for each mirror image along these axes, the image itself first."""
    dims = [_AXES.index(axis) - 3 for axis in axes]
    return [chosen for count in range(len(dims) + 1) for chosen in combinations(dims, count)]


def mirror_axes(wanted: str, card: DatasetCard, target: AbstractTarget | None) -> str:
    """Return the axes of `--mirror`, of D, H and W; "": all that samples of the card's medium may be mirrored along.

    InputError for other axes, for features, and for classes that would change ends.
    """
    allowed = medium_of(card).mirror_axes
    axes = wanted or allowed
    if target is None:
        raise InputError("--mirror averages what heads answer, not features; leave one of both out")
    if not set(axes) <= set(allowed) or len(set(axes)) < len(axes):
        raise InputError(f"--mirror: {wanted!r} is none of the axes that {card.media}s are mirrored along: {allowed}")
    for axis in axes:
        if sided := _names_that_change_ends(target.names, axis, card.input.orientation or "RAS"):
            rest = axes.replace(axis, "")
            remedy = f"mirror other axes: --mirror {rest}" if rest else "leave --mirror out"
            named = ", ".join(sided[:4])
            raise InputError(f"--mirror: {named} would change ends when mirrored along {axis}; {remedy}")
    return axes


def _names_that_change_ends(names: Sequence[str], axis: str, orientation: str) -> list[str]:
    """Return the names that are wrong in an image mirrored along an axis: left or right, and both ends of another.

    orientation: where (W, H, D) grow to. An inferior vena cava without a superior one among the names stays what it is.
    """
    code = orientation["WHD".index(axis)]
    words = {name: name.replace("_", " ").lower().split() for name in names}
    found = []
    for letters, *ends in _ENDS:
        for name, own in words.items():
            turned = [ends[1 - ends.index(word)] if word in ends else word for word in own]
            if code in letters and turned != own and (letters == "LR" or turned in words.values()):
                found.append(name)
    return found


def mixed_precision(precision: str, device: torch.device) -> Any:
    """Return the context in which Lightning validates under trainer.precision; on the CPU 16-mixed is bf16-mixed."""
    if (dtype := _HALF.get(precision)) is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if device.type == "cpu" else dtype)


def check_together(heads: Sequence[Answering], models: Sequence[str], *, features: bool) -> None:
    """Raise InputError where answers of these heads cannot be averaged: other labels, or read on another grid."""
    if features and len(heads) > 1:
        raise InputError("several models are averaged in what their heads answer, not in features; give one model")
    for head, model in zip(heads[1:], models[1:], strict=True):
        for what, of in (("tells", _told), ("reads", _read)):
            if (one := of(heads[0])) != (other := of(head)):
                raise InputError(
                    f"models are averaged whose heads are alike, but {heads[0].dataset!r} of {models[0]} {what} {one}, "
                    f"{head.dataset!r} of {model} {other}; choose heads by --dataset, or predict one by one"
                )


def _told(head: Answering) -> str:
    target = head.target
    if target is None:
        return "features"
    return f"{target.type_name()}: {', '.join(target.names) or target.describe()}"


def _read(head: Answering) -> str:
    spec = head.card.input
    spacing = "" if spec.spacing_mm is None else " at " + " x ".join(f"{v:.4g}" for v in spec.spacing_mm) + " mm"
    return f"{head.card.media}s of {len(spec.channels)} channels in {spec.orientation or 'any'} axes{spacing}"


def _without_padding(answer: Answer, members: Mapping[str, Any], sample: Sample) -> Answer:
    """Return the answer for the voxels that were read: evaluation pads small volumes evenly to a patch."""
    shape: Triple = members["image"].shape[1:]
    start = [-n for n in centre(shape, answer.tensor.shape[2:])]
    read_mm = members["json"].get("spacing_mm") or sample.spacing_mm
    if min(start) < 0 or not np.allclose(sample.spacing_mm, read_mm):
        raise InputError(
            f"the model saw {tuple(answer.tensor.shape[2:])} of {tuple(shape)} voxels, cut or resized (sample.size, "
            "sample.resize); label maps need a net that was trained on patches (sample.patch_size)"
        )
    return answer.like(answer.tensor[:, :, *(slice(s, s + n) for s, n in zip(start, shape, strict=True))])
