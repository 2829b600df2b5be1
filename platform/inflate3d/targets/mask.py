"""A label map on the image's grid: one class a voxel, perhaps of some classes only, or regions of several labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from inflate3d.contracts.prediction import Masks
from inflate3d.contracts.target import AbstractTarget
from inflate3d.errors import InputError, unknown_name
from inflate3d.targets._regions import Region as Region
from inflate3d.targets._regions import as_regions

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True)
class MaskTarget(AbstractTarget):
    """names: the labels in index order, the background first. In a batch (B, D, H, W) int64.

    annotated: the classes that were looked for; () means all. Where some were not, a voxel of label 0 is background or
    one of those, and losses and metrics take it so: partial labels are a property of the data.
    ignored: labels whose voxels are in no loss, no score and no patch's middle, as nnU-Net's `ignore`.
    regions: what is told in place of classes, each by itself (targets._regions); labels of none are background.
    """

    names: tuple[str, ...] = ()  # type: ignore[assignment]
    annotated: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    per_voxel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for field in ("annotated", "ignored"):
            for name in getattr(self, field):
                if name not in self.names:
                    raise unknown_name("class", name, self.names, where=field)
        if self.names[:1] and self.names[0] in self.ignored:
            raise InputError(f"ignored: {self.names[0]!r} is the background; what is unknown needs a label of its own")
        if self.regions and self.annotated:
            raise InputError("regions and annotated together: a region is known where all of its labels are; drop one")
        allowed = [name for name in self.names[1:] if name not in self.ignored]
        object.__setattr__(self, "regions", as_regions(self.regions, allowed))  # frozen; this is its construction

    def to_dict(self) -> dict[str, Any]:
        """Return the target as plain JSON values; `ignored` and `regions` where there are any."""
        stated = asdict(self)
        rest = {key: stated.pop(key) for key in ("ignored", "regions")}
        return {"type": self.type_name(), **stated, **{key: value for key, value in rest.items() if value}}

    @property
    def unannotated(self) -> tuple[int, ...]:
        """Indices of the classes that were not looked for; the background always counts as looked for."""
        if not self.annotated:
            return ()
        looked = {*self.annotated, *self.ignored}
        return tuple(i for i, name in enumerate(self.names) if i and name not in looked)

    @property
    def left_out(self) -> tuple[int, ...]:
        """Indices of the ignored labels."""
        return tuple(i for i, name in enumerate(self.names) if name in self.ignored)

    @property
    def classes(self) -> tuple[int, ...]:
        """Indices of the labels that are told one by one: all but the ignored ones."""
        return tuple(i for i in range(len(self.names)) if i not in self.left_out)

    @property
    def answers(self) -> tuple[str, ...]:
        """The regions; without any the classes, the background first."""
        return tuple(r.name for r in self.regions) or tuple(self.names[i] for i in self.classes)

    @property
    def scored(self) -> dict[str, tuple[int, ...]]:
        """Each region with its labels; without any each class that was looked for, but the background."""
        if self.regions:
            return {r.name: tuple(self.names.index(label) for label in r.labels) for r in self.regions}
        return {self.names[i]: (i,) for i in self.classes if i and i not in self.unannotated}

    @property
    def written(self) -> dict[str, int]:
        """Each region with the label that is written for it; without any each class with its own."""
        if self.regions:
            return {r.name: self.names.index(r.written) for r in self.regions}
        return {self.names[i]: i for i in self.classes}

    def encode(self, value: Any) -> np.ndarray:
        """Take (D, H, W) uint8 whose labels all have a name."""
        if getattr(value, "dtype", None) != "uint8" or value.ndim != 3:
            got = f"{value.dtype} {value.shape}" if hasattr(value, "dtype") else type(value).__name__
            raise InputError(f"is {got}; expected uint8 (D, H, W)")
        highest = int(value.max(initial=0))
        if highest >= len(self.names):
            raise InputError(f"holds label {highest}; {len(self.names)} classes are named: {', '.join(self.names)}")
        return value

    def check(self, stored: Any) -> None:
        """Refuse what is no uint8 volume; its voxels are not read."""
        if stored is None or stored.dtype != "uint8" or len(stored.shape) != 3:
            got = "none" if stored is None else f"{stored.dtype} {tuple(stored.shape)}"
            raise InputError(f"is {got}; expected uint8 (D, H, W)")

    def tensor(self, stored: Any) -> Tensor:
        """(D, H, W) int64."""
        import torch

        return torch.as_tensor(stored).long()

    def facts(self, array: np.ndarray) -> Any:
        """Voxels of each class."""
        import numpy as np

        return np.bincount(array.ravel(), minlength=len(self.names)).tolist()

    def summarise(self, stored: Sequence[Any]) -> dict[str, Any]:
        """Samples that show each class."""
        counts: Counter[int] = Counter()
        for voxels in stored:
            counts.update(i for i, count in enumerate(voxels or ()) if count)
        return {"class_samples": {name: counts[i] for i, name in enumerate(self.names)}}

    def describe(self) -> str:
        """The classes, and which of them were annotated, or the regions; and what is ignored."""
        rest = f" (annotated: {', '.join(self.annotated)})" if self.annotated else ""
        rest += f"; ignored: {', '.join(self.ignored)}" if self.ignored else ""
        if self.regions:
            told = ", ".join(f"{r.name} ({' + '.join(r.labels)})" for r in self.regions)
            return f"a mask of {len(self.regions)} regions: {told}{rest}"
        return f"a mask of {len(self.answers)} classes: {', '.join(self.answers)}{rest}"

    def show(self, value: Tensor) -> str:
        """The classes that occur."""
        found = [self.names[i] for i in value.unique().tolist() if i and i < len(self.names)]
        return ", ".join(found) or self.names[0]

    def answer(self, logits: Tensor) -> Masks:
        """Their softmax over the classes, or the sigmoid of each region, (B, K, D, H, W)."""
        return Masks(logits.float().sigmoid() if self.regions else logits.float().softmax(dim=1))

    def label_map(self, answer: Tensor) -> Tensor:
        """The likeliest class of each voxel; or the regions above one half, written one over the other in order.

        (B, K, D, H, W) -> (B, D, H, W) int64, as nnU-Net's convert_probabilities_to_segmentation.
        """
        import torch

        if not self.regions:
            best = answer.argmax(dim=1)
            return torch.tensor(self.classes, device=best.device)[best] if self.ignored else best
        labels = torch.zeros_like(answer[:, 0], dtype=torch.int64)
        for region, inside in zip(self.regions, answer.unbind(dim=1), strict=True):
            labels[inside > 0.5] = self.names.index(region.written)
        return labels

    def channels(self, value: Tensor) -> Tensor:
        """Return labels as indices of the classes among `answers`, -1 where they are ignored; shapes are equal."""
        if not self.ignored:
            return value
        place = value.new_full((len(self.names),), -1)
        place[list(self.classes)] = place.new_tensor(range(len(self.classes)))
        return place[value]

    def inside(self, value: Tensor) -> Tensor:
        """Return whether each voxel is in each region, (B, D, H, W) -> (B, R, D, H, W) float32; NaN: ignored."""
        import torch

        table = torch.zeros(len(self.names), len(self.regions), device=value.device)
        for channel, labels in enumerate(self.scored.values()):
            table[list(labels), channel] = 1
        table[list(self.left_out)] = torch.nan
        return table[value].movedim(-1, 1)

    def check_batch(self, value: Tensor) -> None:
        """Refuse labels without a name."""
        low, high = int(value.min()), int(value.max())
        if low < 0 or high >= len(self.names):
            raise InputError(
                f"labels from {low} to {high}; {len(self.names)} classes are named: {', '.join(self.names)}"
            )

    def tally(self, value: Tensor) -> Tensor:
        """Voxels of each class."""
        import torch

        return torch.bincount(value.flatten(), minlength=len(self.names)).double()

    def constant_logits(self, tally: Tensor, like: Tensor) -> Tensor:
        """The logarithms of the classes' frequencies, or the log odds of each region, (B, K, D, H, W)."""
        tally = tally[list(self.classes)]
        logits = ((tally + 1) / (tally + 1).sum()).log().float()
        if self.regions:
            held = tally.new_tensor([sum(tally[self.classes.index(i)] for i in s) for s in self.scored.values()])
            logits = ((held + 1) / (tally.sum() + 2)).logit().float()
        return logits.view(1, -1, *[1] * (like.ndim - 1)).expand(len(like), -1, *like.shape[1:])


MOST_CLASSES = 256
"""Label maps are uint8."""


def united(targets: Mapping[str, MaskTarget]) -> dict[str, MaskTarget]:
    """Return each dataset's target over the classes of all, in the order in which they first appear.

    targets: by dataset. Classes of one name are one class; one that a dataset does not name was not looked for in it.
    Index 0 is the background of all, under the first one's name; what any ignores comes last. InputError where two
    datasets spell a name unlike ("Left Kidney", "left_kidney"), where one's class is another's background or ignored
    there, for regions, and beyond 256 classes.
    """
    names = list(dict.fromkeys(name for target in targets.values() for name in target.answers[1:]))
    ignored = tuple(dict.fromkeys(name for target in targets.values() for name in target.ignored))
    _refuse_lookalikes(targets)
    for dataset, target in targets.items():
        if target.names[0] in names:
            raise InputError(f"{target.names[0]!r} is the background of {dataset}, and a class of another dataset")
        if target.regions:
            raise InputError(f"{dataset} tells regions, which a shared decoder of classes cannot: leave shared out")
        if odd := [name for name in target.ignored if name in names]:
            raise InputError(f"{odd[0]!r} is ignored in {dataset}, and a class of another dataset; rename one of them")
    whole = (next(iter(targets.values())).names[0], *names, *ignored)
    if len(whole) > MOST_CLASSES:
        raise InputError(f"{len(whole)} classes together; one decoder tells at most {MOST_CLASSES} apart")
    found = {}
    for dataset, target in targets.items():
        looked = {name for i, name in enumerate(target.names) if i not in target.unannotated}
        annotated = (whole[0], *(name for name in names if name in looked))
        found[dataset] = MaskTarget(whole, () if len(annotated) == 1 + len(names) else annotated, ignored)
    return found


def _refuse_lookalikes(targets: Mapping[str, MaskTarget]) -> None:
    """Refuse names of two datasets that differ in case, blanks and punctuation alone: one class, or two?"""
    first: dict[str, tuple[str, str]] = {}
    for dataset, target in targets.items():
        for name in target.names[1:]:
            before, other = first.setdefault(re.sub(r"[\W_]+", "", name).casefold() or name, (dataset, name))
            if name not in targets[before].names:
                raise InputError(
                    f"{other!r} of {before} and {name!r} of {dataset} differ in their spelling alone. Give them one "
                    "name where they are one class, unlike ones where they are two: "
                    f"data.datasets.{dataset}.targets, {{mask: {{names: [...]}}}}"
                )
