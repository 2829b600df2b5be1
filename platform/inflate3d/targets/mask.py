"""One class a voxel: a label map on the image's grid, perhaps of some classes only."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from inflate3d.contracts.prediction import Masks
from inflate3d.contracts.target import AbstractTarget
from inflate3d.errors import InputError, unknown_name

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True)
class MaskTarget(AbstractTarget):
    """names: the classes in index order, the background first. In a batch (B, D, H, W) int64.

    annotated: the classes that were looked for; () means all. Where some were not, a voxel of label 0 is background or
    one of those, and losses and metrics take it so: partial labels are a property of the data.
    """

    names: tuple[str, ...] = ()  # type: ignore[assignment]
    annotated: tuple[str, ...] = ()
    per_voxel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in self.annotated:
            if name not in self.names:
                raise unknown_name("class", name, self.names, where="annotated")

    @property
    def unannotated(self) -> tuple[int, ...]:
        """Indices of the classes that were not looked for; the background always counts as looked for."""
        if not self.annotated:
            return ()
        return tuple(i for i, name in enumerate(self.names) if i and name not in self.annotated)

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
        """The names, and which of them were annotated."""
        rest = f" (annotated: {', '.join(self.annotated)})" if self.annotated else ""
        return f"a mask of {len(self.names)} classes: {', '.join(self.names)}{rest}"

    def show(self, value: Tensor) -> str:
        """The classes that occur."""
        found = [self.names[i] for i in value.unique().tolist() if i and i < len(self.names)]
        return ", ".join(found) or self.names[0]

    def answer(self, logits: Tensor) -> Masks:
        """Their softmax, (B, K, D, H, W)."""
        return Masks(logits.float().softmax(dim=1))

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
        """The logarithms of the classes' frequencies, (B, K, D, H, W)."""
        logits = ((tally + 1) / (tally + 1).sum()).log().float()
        return logits.view(1, -1, *[1] * (like.ndim - 1)).expand(len(like), -1, *like.shape[1:])


MOST_CLASSES = 256
"""Label maps are uint8."""


def united(targets: Mapping[str, MaskTarget]) -> dict[str, MaskTarget]:
    """Return each dataset's target over the classes of all, in the order in which they first appear.

    targets: by dataset. Classes of one name are one class; one that a dataset does not name was not looked for in it.
    Index 0 is the background of all, under the first one's name. InputError where two datasets spell a name unlike
    ("Left Kidney", "left_kidney"), where one's class is another's background, and beyond 256 classes.
    """
    names = list(dict.fromkeys(name for target in targets.values() for name in target.names[1:]))
    _refuse_lookalikes(targets)
    for dataset, target in targets.items():
        if target.names[0] in names:
            raise InputError(f"{target.names[0]!r} is the background of {dataset}, and a class of another dataset")
    whole = (next(iter(targets.values())).names[0], *names)
    if len(whole) > MOST_CLASSES:
        raise InputError(f"{len(whole)} classes together; one decoder tells at most {MOST_CLASSES} apart")
    found = {}
    for dataset, target in targets.items():
        looked = {name for i, name in enumerate(target.names) if i not in target.unannotated}
        annotated = (whole[0], *(name for name in names if name in looked))
        found[dataset] = MaskTarget(whole, () if len(annotated) == len(whole) else annotated)
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
