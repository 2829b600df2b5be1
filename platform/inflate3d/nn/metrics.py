"""What tasks are scored by, as torchmetrics metrics: Dice, accuracies, areas under ROC curves, errors of values.

Samples whose value is not known (class -1, NaN) do not count.
"""

# B batch, K classes or labels, D H W voxels.

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, multiclass_auroc

from inflate3d.contracts import AbstractTarget


def volume_dice(predicted: Tensor, truth: Tensor, target: AbstractTarget) -> tuple[Tensor, Tensor]:
    """Return the Dice (S,) of all that a mask is scored by (`target.scored`), and whether either map holds it.

    predicted, truth: label maps of one shape, int64, indices of target.names; voxels that the truth leaves out do not
    count.
    """
    num_labels, scored = len(target.names), list(target.scored.values())
    counts = torch.bincount(truth.flatten() * num_labels + predicted.flatten(), minlength=num_labels**2)
    confusion = counts.view(num_labels, num_labels).double()
    confusion[list(target.left_out)] = 0
    inside = confusion.new_zeros(len(scored), num_labels)
    for row, labels in zip(inside, scored, strict=True):
        row[list(labels)] = 1
    sizes = inside @ (confusion.sum(0) + confusion.sum(1))
    return 2 * ((inside @ confusion) * inside).sum(1) / sizes.clamp_min(1), sizes > 0


def class_name(name: str) -> str:
    """Return a class's name as keys of metrics have it."""
    return name.strip().replace(" ", "_")


class VolumeDice(Metric):
    """Dice of each foreground class, or region, computed volume by volume and averaged over the volumes.

    A class that neither truth nor prediction of a volume holds says nothing of that volume and is left out of its
    average; one that only the prediction holds counts as 0. Regions are read from the label map that is written, as
    nnU-Net does. `compute` returns {"dice": mean of the classes, "dice_<class>": ...}, NaN where no volume spoke.
    """

    full_state_update = False
    higher_is_better = True
    total: Tensor
    volumes: Tensor

    def __init__(self, target: AbstractTarget) -> None:
        """target: of masks; its `scored` are measured."""
        super().__init__()
        self.target = target
        zeros = torch.zeros(len(target.scored), dtype=torch.float64)
        self.add_state("total", default=zeros, dist_reduce_fx="sum")
        self.add_state("volumes", default=zeros.clone(), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Count volumes: probabilities (B, K, D, H, W), target (B, D, H, W)."""
        for predicted, truth in zip(self.target.label_map(probabilities), target, strict=True):
            dice, spoke = volume_dice(predicted, truth, self.target)
            self.total += dice
            self.volumes += spoke.double()

    def compute(self) -> dict[str, Tensor]:
        """Return the averages by name."""
        dice = (self.total / self.volumes).float()
        names = [f"dice_{class_name(name)}" for name in self.target.scored]
        return {"dice": dice.nanmean(), **dict(zip(names, dice, strict=True))}


class Accuracy(Metric):
    """Share of the samples whose class is among the `top_k` likeliest; NaN where there was none."""

    full_state_update = False
    higher_is_better = True
    right: Tensor
    samples: Tensor

    def __init__(self, top_k: int = 1) -> None:
        super().__init__()
        self.top_k = top_k
        for name in ("right", "samples"):
            self.add_state(name, default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Count probabilities (B, K) and classes (B,)."""
        best = probabilities.argmax(1, keepdim=True) if self.top_k == 1 else probabilities.topk(self.top_k).indices
        self.right += (best == target[:, None]).sum()
        self.samples += (target >= 0).sum()

    def compute(self) -> Tensor:
        """Return the share."""
        return self.right / self.samples


class MeanClassAccuracy(Metric):
    """Share of each class's samples that are recognised, the mean over the classes that occur.

    torchmetrics' own counts a class as 0 that is predicted and does not occur.
    """

    full_state_update = False
    higher_is_better = True
    right: Tensor
    samples: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("right", default=torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("samples", default=torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Count probabilities (B, K) and classes (B,)."""
        is_right = probabilities.argmax(dim=1) == target
        self.right += torch.bincount(target[is_right], minlength=len(self.right))
        self.samples += torch.bincount(target[target >= 0], minlength=len(self.samples))

    def compute(self) -> Tensor:
        """Return the mean; NaN where there was no sample."""
        return (self.right / self.samples).nanmean()


class RocArea(Metric):
    """Area under the ROC curve, one class against the rest, the mean over the classes that occur.

    Exact, as torchmetrics' own; but a rank that saw no sample can take part, which fails there: its empty lists of
    integers and floats do not fit the others'. So all is kept in one list of flat floats.
    """

    full_state_update = False
    higher_is_better = True
    rows: list[Tensor]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Keep probabilities (B, K) and classes (B,)."""
        known = target >= 0
        self.rows.append(torch.cat([probabilities[known].float(), target[known, None].float()], dim=1).flatten())

    def compute(self) -> Tensor:
        """Return the area; NaN where all samples are of one class."""
        rows = torch.cat(self.rows) if isinstance(self.rows, list) else self.rows
        table = rows.view(-1, self.num_classes + 1)
        target = table[:, -1].long()
        if len(target.unique()) < 2:
            return table.new_tensor(float("nan"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that do not occur
            areas = multiclass_auroc(table[:, :-1], target, self.num_classes, average="none")
        return areas[target.unique()].mean()


class LabelRocArea(Metric):
    """Area under the ROC curve of each label, over the samples of which it is known, and their mean.

    `compute` returns {"auroc": mean, "auroc_<label>": ...}; NaN, and left out of the mean, where all samples of a label
    are alike. Kept as one list of flat floats, as RocArea.
    """

    full_state_update = False
    higher_is_better = True
    rows: list[Tensor]

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Keep probabilities (B, K) and labels (B, K) of 0, 1 and NaN."""
        self.rows.append(torch.stack([probabilities.float(), target.float()], dim=-1).flatten())

    def compute(self) -> dict[str, Tensor]:
        """Return the areas by name."""
        rows = torch.cat(self.rows) if isinstance(self.rows, list) else self.rows
        table = rows.view(-1, len(self.names), 2)
        areas = torch.stack([self._area(column) for column in table.unbind(dim=1)])
        names = [f"auroc_{class_name(name)}" for name in self.names]
        return {"auroc": areas.nanmean(), **dict(zip(names, areas, strict=True))}

    @staticmethod
    def _area(column: Tensor) -> Tensor:
        probabilities, target = column[~column[:, 1].isnan()].unbind(dim=1)
        if len(target.unique()) < 2:
            return column.new_tensor(float("nan"))
        return binary_auroc(probabilities, target.long())


class ValueErrors(Metric):
    """Mean absolute error, in the target's unit, and the share of the variance that is explained (R2).

    `compute` returns {"mae": ..., "r2": ...}; NaN where no value is known, and R2 where all are alike.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", default=torch.zeros(5, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, guess: Tensor, target: Tensor) -> None:
        """Count numbers (B,) and values (B,)."""
        known = ~target.isnan()
        true, error = target[known].double(), (guess - target)[known].double()
        parts = [torch.ones_like(true), true, true.square(), error.abs(), error.square()]
        self.sums += torch.stack([part.sum() for part in parts])

    def compute(self) -> dict[str, Tensor]:
        """Return both."""
        count, total, squares, absolute, wrong = self.sums
        spread = squares - total.square() / count
        r2 = torch.where(spread > 1e-12 * squares, 1 - wrong / spread, float("nan"))
        return {"mae": (absolute / count).float(), "r2": r2.float()}
