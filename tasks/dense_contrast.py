"""Dense contrast: a voxel seen in two crops and two contrasts of one volume is one voxel. Needs no labels."""

# B batch, N points, C channel, D H W voxels along z y x.

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from inflate3d.contracts import AbstractTask, Encoder, Exhibit, Panel
from inflate3d.errors import InputError
from inflate3d.nn.contrast import change_contrast
from inflate3d.nn.crops import common_cells, draw_crop
from inflate3d.nn.info_nce import LevelProjections, info_nce, nearest
from inflate3d.seeds import mix

if TYPE_CHECKING:
    from inflate3d.contracts import DatasetCard
    from inflate3d.nn.crops import Crop
    from inflate3d.sample import Batch, Triple
    from torch import Tensor, nn


class DenseContrast(AbstractTask):
    """InfoNCE between the features of one place in two views, against other places of the same batch, at each level.

    Views: a crop each, flipped along W half the time, each in a contrast of its own: of random curves, or, of the
    second view, what the dataset's target `other_contrast` shows. `found` is the share of places whose nearest of all
    is their own, over levels; `chance` is what a guess would reach.

    After anatomix (arXiv:2411.02372), VADeR (arXiv:2011.05499), and InfoNCE (arXiv:1807.03748).
    """

    media: ClassVar[tuple[str, ...]] = ("volume",)
    measured: ClassVar[tuple[str, ...]] = ("loss", "found", "chance")

    def __init__(
        self,
        *,
        datasets: Sequence[str],
        loss_weight: float = 1.0,
        other_contrast: str | None = None,
        contrast: float = 1.0,
        crop: float = 0.7,
        points: int = 64,
        temperature: float = 0.1,
        width: int = 64,
    ) -> None:
        """other_contrast: a target of one number a voxel, for datasets that have it. contrast: 0 to 1, how much
        intensities change. crop: least share of an edge that a view keeps, above .5 so that two views overlap.

        points: at most, a sample and level. width: of the projections.
        """
        super().__init__(datasets=datasets, loss_weight=loss_weight)
        if not 0.5 < crop <= 1:
            raise InputError(
                f"DenseContrast: crop is {crop}; it must be above 0.5 and at most 1, so that views overlap"
            )
        if not 0 <= contrast <= 1:
            raise InputError(f"DenseContrast: contrast is {contrast}; it must lie between 0 and 1")
        if not temperature > 0:
            raise InputError(f"DenseContrast: temperature is {temperature}; it must be above 0")
        if points < 2 or width < 1:
            raise InputError(f"DenseContrast: points is {points}, width {width}; at least 2 and 1")
        self.other_contrast, self.contrast, self.crop = other_contrast, contrast, crop
        self.points, self.temperature, self.width = points, temperature, width

    def bind(self, cards: dict[str, DatasetCard]) -> None:  # type: ignore[override]
        """Take the cards. Raises InputError where no dataset has the target `other_contrast`."""
        super().bind(cards)
        if self.other_contrast is not None and not any(self.other_contrast in c.targets for c in self.cards.values()):
            raise InputError(
                f"DenseContrast: none of {', '.join(self.cards)} has a target {self.other_contrast!r}; leave "
                "other_contrast out"
            )

    def build(self, encoder: Encoder) -> None:
        """Make a projection for each level."""
        self.reductions = encoder.feature_info.reduction_dhw()
        self.project = LevelProjections(encoder.feature_info.channels(), self.width)

    def modules(self) -> dict[str, nn.Module]:
        """The projections, of all datasets."""
        return {"project": self.project}

    def step(self, encoder: Encoder, batch: Batch, *, seed: int) -> dict[str, Tensor]:
        """Cut two views, encode both, and compare places that both show."""
        import torch

        draw = torch.Generator().manual_seed(mix(seed, "views"))
        crops, views = self._views(batch, draw)
        maps = [self.project.of(encoder(view, domain=batch.dataset).maps) for view in views]
        # Levels of a single place have nothing to compare; they take part with weight 0.
        total = sum((0.0 * m.sum() for own in maps for m in own), start=batch.image.new_zeros(()))
        found, chance = [], []
        for level, stride in enumerate(self.reductions):
            points = self._points(crops, stride, draw).to(batch.image.device)
            if len(points) < 2:
                continue
            a, b = (crop.sample(own[level].float(), points) for crop, own in zip(crops, maps, strict=True))
            loss, hits = info_nce(a.flatten(0, 1), b.flatten(0, 1), self.temperature)
            total = total + loss
            found.append(hits)
            chance.append(1 / (len(points) * len(batch)))
        if not found:
            raise InputError(
                f"DenseContrast: images of {tuple(batch.image.shape[2:])} voxels have one place at every level of this "
                "backbone; take larger ones, or a backbone with finer levels"
            )
        mean_chance = total.new_tensor(sum(chance) / len(chance))
        return {"loss": total / len(found), "found": torch.stack(found).mean(), "chance": mean_chance}

    def show(self, encoder: Encoder, batch: Batch, *, seed: int) -> list[Exhibit]:
        """Return both views of a step of this seed; of the two finest levels, places of one slice in a colour each.

        A place is drawn where it lies in either view, and where it was found in the second, of the places of its slice.
        """
        import torch

        draw = torch.Generator().manual_seed(mix(seed, "views"))
        crops, views = self._views(batch, draw)
        maps = [self.project.of(encoder(view, domain=batch.dataset).maps) for view in views]
        shown: list[tuple[list[str], list[Panel]]] = [([], []) for _ in batch.keys]
        for level, stride in enumerate(self.reductions):
            points = self._points(crops, stride, draw)
            if len(points) < 2 or len(shown[0][0]) == _LEVELS:
                continue
            own = (crop.sample(m[level].float().cpu(), points) for crop, m in zip(crops, maps, strict=True))
            for i, (a, b) in enumerate(zip(*own, strict=True)):
                right = int((nearest(a, b) == torch.arange(len(points))).sum())
                shown[i][0].append(f"level {level}: {right} of {len(points)} places found")
                shown[i][1].extend(_panels(level, stride, points, a, b, crops, [view[i] for view in views]))
        return [Exhibit(", ".join(said), panels) for said, panels in shown]

    def _views(self, batch: Batch, draw: object) -> tuple[list[Crop], list[Tensor]]:
        """Return two crops, and what each cuts of the batch in its own contrast."""
        size: Triple = tuple(batch.image.shape[2:])  # type: ignore[assignment]
        crops = [draw_crop(size, least=self.crop, most=1.0, generator=draw, flips=(2,)) for _ in range(2)]  # type: ignore[arg-type]
        views = [self._contrast(batch, draw, second=second) for second in (False, True)]
        return crops, [crop.of(view).contiguous() for crop, view in zip(crops, views, strict=True)]

    def _contrast(self, batch: Batch, draw: object, *, second: bool) -> Tensor:
        if second and self.other_contrast in batch.targets:
            return batch.targets[self.other_contrast][:, None].to(batch.image)
        return change_contrast(batch.image, draw, strength=self.contrast)  # type: ignore[arg-type]

    def _points(self, crops: list[Crop], stride: Triple, draw: object) -> Tensor:
        import torch

        cells = common_cells(crops[0], crops[1], stride)
        return cells[torch.randperm(len(cells), generator=draw)[: self.points]]  # type: ignore[call-overload]


_LEVELS, _PLACES = 2, 9
"""Levels that are shown, and places of each: more colours a person does not tell apart."""


def _panels(
    level: int, stride: Triple, points: Tensor, a: Tensor, b: Tensor, crops: Sequence[Crop], views: Sequence[Tensor]
) -> list[Panel]:
    """Return three panels of one sample: places in the first view, in the second, and where they were found there.

    points: (N, 3) in voxels of the image, of which those on the slice along D that holds most are shown and searched.
    a, b: (N, C), what either view says of each.
    """
    on_slice = (points[:, 0] == points[:, 0].mode().values).nonzero()[:, 0]
    chosen, places = on_slice[:_PLACES], points[on_slice]
    found = places[nearest(a[chosen], b[on_slice])]
    true, told = (list(enumerate(ones, start=1)) for ones in (points[chosen], found))
    return [
        Panel(f"level {level}: first view", views[0], crops[0].marks(true, stride)),
        Panel("second view", views[1], crops[1].marks(true, stride)),
        Panel("where it was found", views[1], crops[1].marks(told, stride)),
    ]
