"""Distillation: features stay near, or come near, those of a frozen teacher. Needs no labels."""

# B batch, C channel, D H W voxels along z y x, or time and pixels.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from inflate3d.contracts import AbstractTask, Encoder, Exhibit, Panel
from inflate3d.errors import InputError
from inflate3d.nn.matching import LevelMatch
from inflate3d.nn.teacher import follow_statistics

if TYPE_CHECKING:
    from inflate3d.contracts import Features
    from inflate3d.sample import Batch
    from torch import Tensor, nn

START = "start"


class Distillation(AbstractTask):
    """One minus the cosine of student and teacher at every place of chosen levels, and of the pooled features.

    teacher "start": the run's own backbone as it was before the first step, whose BatchNorms follow the data as the
    student's do. Beside other tasks that is an anchor: training cannot erode what the 2D weights know.
    Any other teacher is a name that `create_model` takes, or a mapping of its arguments; with plan 2d, the default, it
    is the 2D net on each slice or frame. Where widths differ, a 1x1x1 convolution answers for the student. `cosine`
    is the mean over levels.

    After FitNets (arXiv:1412.6550) and, for the anchor, Learning without Forgetting (arXiv:1606.09282).
    """

    measured: ClassVar[tuple[str, ...]] = ("loss", "cosine")

    def __init__(
        self,
        *,
        datasets: Sequence[str],
        loss_weight: float = 1.0,
        teacher: str | Mapping[str, Any] = START,
        levels: Sequence[int] | None = None,
    ) -> None:
        """teacher: "start", a name, or {name: ..., plan: ..., ...}. levels: indices, shallow to deep, of levels that
        both nets have; default: the last two.
        """
        super().__init__(datasets=datasets, loss_weight=loss_weight)
        if levels is not None and (not levels or any(isinstance(i, bool) or not isinstance(i, int) for i in levels)):
            raise InputError(f"Distillation: levels is {levels!r}; give indices such as [3, 4], or leave it out")
        self.given_teacher = {"name": teacher} if isinstance(teacher, str) else dict(teacher)
        if not isinstance(self.given_teacher.get("name"), str):
            raise InputError(f"Distillation: teacher is {teacher!r}; give a name, or a mapping that holds one")
        self.given_levels = levels

    def build(self, encoder: Encoder) -> None:
        """Copy or make the teacher, and what matches widths."""
        self.follows = self.given_teacher == {"name": START}
        if self.follows:
            self.teacher = encoder.frozen_copy()
            theirs, pooled = encoder.feature_info.channels(), encoder.feature_info.num_pooled
        else:
            from inflate3d.nn.matching import NamedTeacher

            channels = {len(card.input.channels) for card in self.cards.values()}
            if len(channels) > 1:
                raise InputError(
                    f"Distillation: the datasets have {sorted(channels)} channels, a teacher by name takes one number; "
                    "make a task for each"
                )
            self.teacher = NamedTeacher(in_chans=channels.pop(), **self.given_teacher)
            theirs, pooled = self.teacher.channels, 0
        own = encoder.feature_info
        count = min(len(own.channels()), len(theirs))
        levels = list(range(count))[-2:] if self.given_levels is None else list(self.given_levels)
        if wrong := [i for i in levels if not 0 <= i < count]:
            raise InputError(f"Distillation: levels holds {wrong}; both nets have levels 0 to {count - 1}")
        self.match = LevelMatch(own.channels(), theirs, levels, pooled=pooled)

    def modules(self) -> dict[str, nn.Module]:
        """What answers for the student."""
        return {"match": self.match}

    def frozen_modules(self) -> dict[str, nn.Module]:
        """The teacher."""
        return {"teacher": self.teacher}

    def step(self, encoder: Encoder, batch: Batch, *, seed: int) -> dict[str, Tensor]:
        """Compare what both see in the same view."""
        wanted = self._wanted(batch)
        cosine = self.match.cosine(encoder(batch.image, domain=batch.dataset), wanted)
        return {"loss": 1 - cosine, "cosine": cosine.detach()}

    def show(self, encoder: Encoder, batch: Batch, *, seed: int) -> list[Exhibit]:
        """Return the image, and beside it the cosine at each place of each level: bright where both agree most."""
        from torch.nn.functional import interpolate

        wanted = self._wanted(batch)
        levels = self.match.cosines(encoder(batch.image, domain=batch.dataset), wanted)
        size = batch.image.shape[2:]
        maps = [interpolate(level[:, None], size=size, mode="nearest") for level in levels]
        found = []
        for i, image in enumerate(batch.image):
            means = [float(level[i].mean()) for level in levels]
            panels = [Panel(f"cosine at level {n}", m[i]) for n, m in zip(self.match.indices, maps, strict=True)]
            said = ", ".join(f"level {n} {c:.2f}" for n, c in zip(self.match.indices, means, strict=True))
            found.append(Exhibit(f"cosine with the teacher: {said}", [Panel("image", image), *panels]))
        return found

    def _wanted(self, batch: Batch) -> Features:
        """Return what the teacher sees."""
        import torch

        if self.follows:
            follow_statistics(self.teacher, self.match.training)
        with torch.no_grad():
            wanted: Features = self.teacher(batch.image, domain=batch.dataset)
        return wanted
