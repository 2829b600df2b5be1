"""Toy cards, encoders and batches of any medium and target, made without shards: what tasks are tested on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from inflate3d.contracts import (
    AbstractDataset,
    AbstractTarget,
    AbstractTask,
    Case,
    DatasetCard,
    Features,
    InputSpec,
    RawSample,
)
from inflate3d.sample import Batch
from inflate3d.targets import ClassTarget, MaskTarget, MultiLabelTarget, ValueTarget
from torch import Tensor, nn

SIZE = (8, 12, 10)
NAMES = ("background", "left part", "right")
TARGETS: dict[str, AbstractTarget] = {
    "label": ClassTarget(NAMES),
    "mask": MaskTarget(NAMES),
    "findings": MultiLabelTarget(NAMES),
    "age": ValueTarget("years", 0, 120),
}


def toy_card(
    name: str = "toy", *, media: str = "volume", channels: tuple[str, ...] = ("ct",), **targets: AbstractTarget
) -> DatasetCard:
    """Return a card; without targets: with one of each type."""
    return DatasetCard(
        name, media, "Toy", "ct", "https://x.y", "MIT", True, True, "none", targets or TARGETS, InputSpec(channels)
    )


def toy_values(card: DatasetCard, batch: int, size: tuple[int, int, int]) -> dict[str, Tensor]:
    """Return values of every target: classes in turn, numbers far from each other."""
    found = {}
    for name, target in card.targets.items():
        count = max(len(target.names), 1)
        if target.per_voxel:
            voxels = torch.arange(batch * size[0] * size[1] * size[2])
            found[name] = (voxels % count).view(batch, *size)
        elif target.exclusive:
            found[name] = torch.arange(batch) % count
        elif target.names:
            found[name] = torch.stack([(torch.arange(count) + i) % 2 for i in range(batch)]).float()
        else:
            found[name] = 20.0 + 10 * torch.arange(batch).float()
    return found


def toy_batch(card: DatasetCard, batch: int = 3, size: tuple[int, int, int] = SIZE, *, number: int = 0) -> Batch:
    """Return a batch with every target of a card; the image is drawn from `number`."""
    generator = torch.Generator().manual_seed(number)
    image = torch.randn(batch, len(card.input.channels), *size, generator=generator)
    keys = [f"k{i}" for i in range(batch)]
    return Batch({"image": image}, toy_values(card, batch, size), keys, card.name, torch.ones(batch, 3), number)


class ToyScans(AbstractDataset):
    """Volumes of 16^3 with a target of every type: two to train on, two held out."""

    def __init__(self, card: DatasetCard) -> None:
        self._card = card
        self._values = toy_values(card, 4, (16, 16, 16))

    @property
    def card(self) -> DatasetCard:
        return self._card

    def cases(self) -> list[Case]:
        return [Case(f"case_{i}", "train" if i < 2 else "val", i) for i in range(4)]

    def read(self, case: Case) -> RawSample:
        image = np.random.default_rng(case.source).integers(0, 255, (1, 16, 16, 16)).astype(np.uint8)
        values: dict[str, Any] = {name: value[case.source].numpy() for name, value in self._values.items()}
        masks = {name: values[name].astype(np.uint8) for name, t in self._card.targets.items() if t.per_voxel}
        return RawSample(image, targets={**{n: v.tolist() for n, v in values.items()}, **masks})

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        return {"card": toy_card()}


class ToyFeatureInfo:
    """Two levels."""

    num_pooled = 6

    def channels(self) -> list[int]:
        return [4, 6]

    def reduction_dhw(self) -> list[tuple[int, int, int]]:
        return [(1, 2, 2), (2, 4, 4)]


class ToyEncoder(nn.Module):
    """Features that are a function of a view's size alone, and parameters that nobody needs."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_info = ToyFeatureInfo()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, view_BCDHW: Tensor, *, domain: str) -> Features:
        batch, _, *size = view_BCDHW.shape
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            return self.weight * torch.randn(batch, *shape, generator=generator)

        maps = []
        for channels, strides in zip((4, 6), self.feature_info.reduction_dhw(), strict=True):
            maps.append(drawn(channels, *(-(-n // s) for n, s in zip(size, strides, strict=True))))
        depth, height, width = size
        return Features(maps, drawn(6), (depth, height, width))

    def frozen_copy(self) -> nn.Module:
        import copy

        return copy.deepcopy(self).eval().requires_grad_(False)


def bound(task: AbstractTask, card: DatasetCard) -> AbstractTask:
    """Return a task bound to a card under all its datasets' names, and built."""
    task.bind({name: card for name in task.datasets})
    task.build(ToyEncoder())
    return task
