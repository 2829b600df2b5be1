"""Self-distillation: from any crop the student tells what its slow teacher tells from a large one. Needs no labels."""

# B batch, C channel, D H W voxels along z y x, or time and pixels.

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from inflate3d.contracts import AbstractTask, Encoder, Exhibit, Panel
from inflate3d.errors import InputError
from inflate3d.nn.contrast import change_contrast
from inflate3d.nn.crops import draw_crop
from inflate3d.nn.prototypes import PrototypeHead, even_assignments
from inflate3d.nn.teacher import follow_statistics, move_towards
from inflate3d.seeds import mix

if TYPE_CHECKING:
    from inflate3d.sample import Batch, Triple
    from torch import Tensor, nn


class SelfDistillation(AbstractTask):
    """Cross-entropy of the student's prototypes against those of an EMA teacher, on other crops of the same sample.

    Two global crops go through both nets, `local_crops` smaller ones through the student. The teacher's assignments
    are evened out over the batch (Sinkhorn-Knopp), so that no prototype takes all. `agreement`: how often both name
    the same prototype; `most`: the share of the most frequent one, which a guess would reach.

    After DINO (arXiv:2104.14294), with SwAV's assignments (arXiv:2006.09882).
    """

    measured: ClassVar[tuple[str, ...]] = ("loss", "agreement", "most")

    def __init__(
        self,
        *,
        datasets: Sequence[str],
        loss_weight: float = 1.0,
        prototypes: int = 256,
        width: int = 128,
        momentum: float = 0.99,
        local_crops: int = 2,
        global_crop: float = 0.6,
        local_crop: float = 0.35,
        contrast: float = 0.5,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.05,
    ) -> None:
        """momentum: of the teacher, each optimiser step. global_crop, local_crop: least shares of an edge; a local
        crop keeps at most global_crop. contrast: 0 to 1, how much intensities change; 0 for masks, whose flat
        ground would hold nothing but the noise that is added.
        """
        super().__init__(datasets=datasets, loss_weight=loss_weight)
        if not 0 < momentum < 1:
            raise InputError(f"SelfDistillation: momentum is {momentum}; it must be above 0 and below 1")
        if not 0 < local_crop <= global_crop <= 1:
            raise InputError(
                f"SelfDistillation: local_crop is {local_crop}, global_crop {global_crop}; "
                "0 < local_crop <= global_crop <= 1 must hold"
            )
        if min(student_temperature, teacher_temperature) <= 0 or not 0 <= contrast <= 1:
            raise InputError("SelfDistillation: temperatures must be above 0, and contrast from 0 to 1")
        if prototypes < 2 or width < 1 or local_crops < 0:
            raise InputError(
                f"SelfDistillation: prototypes is {prototypes}, width {width}, local_crops {local_crops}; "
                "at least 2, 1 and 0"
            )
        self.prototypes, self.width, self.momentum = prototypes, width, momentum
        self.local_crops, self.global_crop, self.local_crop = local_crops, global_crop, local_crop
        self.contrast = contrast
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature

    def build(self, encoder: Encoder) -> None:
        """Make the student's head, and the teacher as a copy of both."""
        import copy

        self.head = PrototypeHead(encoder.feature_info.num_pooled, self.width, self.prototypes)
        self.teacher = encoder.frozen_copy()
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)

    def modules(self) -> dict[str, nn.Module]:
        """The student's head."""
        return {"head": self.head}

    def frozen_modules(self) -> dict[str, nn.Module]:
        """The teacher's backbone and head."""
        return {"teacher": self.teacher, "teacher_head": self.teacher_head}

    def step(self, encoder: Encoder, batch: Batch, *, seed: int) -> dict[str, Tensor]:
        """Cut crops, let the teacher assign the global ones, and compare each crop with the others' assignments."""
        import torch

        globals_, locals_ = self._crops(batch.image, seed)
        assigned = [
            even_assignments(self._taught(view, batch.dataset), temperature=self.teacher_temperature)
            for view in globals_
        ]
        losses, agree = [], []
        for i, view in enumerate([*globals_, *locals_]):
            logits = self.head(encoder(view, domain=batch.dataset)).float() / self.student_temperature
            for j, wanted in enumerate(assigned):
                if i != j:
                    losses.append(-(wanted * logits.log_softmax(dim=1)).sum(dim=1).mean())
                    agree.append((logits.argmax(1) == wanted.argmax(1)).float().mean())
        named = torch.cat([wanted.argmax(1) for wanted in assigned])
        most = named.bincount(minlength=self.prototypes).max() / len(named)
        return {"loss": torch.stack(losses).mean(), "agreement": torch.stack(agree).mean(), "most": most}

    def after_step(self, encoder: Encoder, *, step: int) -> None:
        """Move the teacher."""
        move_towards(self.teacher, encoder, self.momentum)  # type: ignore[arg-type]
        move_towards(self.teacher_head, self.head, self.momentum)

    def show(self, encoder: Encoder, batch: Batch, *, seed: int) -> list[Exhibit]:
        """Return the crops of a step of this seed, and the prototype that each net names for each.

        The nearest ones: to even them out takes a batch.
        """
        globals_, locals_ = self._crops(batch.image, seed)
        taught = [self._taught(view, batch.dataset).argmax(1).tolist() for view in globals_]
        told = [self.head(encoder(view, domain=batch.dataset)).argmax(1).tolist() for view in [*globals_, *locals_]]
        return [self._exhibit([*globals_, *locals_], taught, told, i) for i in range(len(batch))]

    def _exhibit(
        self, views: Sequence[Tensor], taught: Sequence[Sequence[int]], told: Sequence[Sequence[int]], i: int
    ) -> Exhibit:
        """Return what sample i of the views shows; taught, told: the prototypes of each view and sample."""
        pairs = [(k, j) for k in range(len(told)) for j in range(len(taught)) if k != j]
        same = sum(told[k][i] == taught[j][i] for k, j in pairs)
        panels = []
        for k, view in enumerate(views):
            teacher = f"teacher {taught[k][i]}, " if k < len(taught) else ""
            name = f"global {k + 1}" if k < len(taught) else f"local {k + 1 - len(taught)}"
            panels.append(Panel(f"{name}: {teacher}student {told[k][i]}", view[i]))
        return Exhibit(f"student and teacher name the same prototype in {same} of {len(pairs)} pairs of crops", panels)

    def _taught(self, view: Tensor, dataset: str) -> Tensor:
        """Return the teacher's cosines with the prototypes, (B, prototypes)."""
        import torch

        # Its running statistics are those of all crops, and no batch of large ones is as they say.
        follow_statistics(self.teacher, self.head.training)
        with torch.no_grad():
            cosines: Tensor = self.teacher_head(self.teacher(view, domain=dataset))
        return cosines

    def _crops(self, image: Tensor, seed: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return two global crops, and the local ones."""
        import torch

        draw = torch.Generator().manual_seed(mix(seed, "crops"))
        globals_ = [self._crop(image, draw, self.global_crop, 1.0) for _ in range(2)]
        locals_ = [self._crop(image, draw, self.local_crop, self.global_crop) for _ in range(self.local_crops)]
        return globals_, locals_

    def _crop(self, image: Tensor, draw: object, least: float, most: float) -> Tensor:
        size: Triple = tuple(image.shape[2:])  # type: ignore[assignment]
        crop = draw_crop(size, least=least, most=most, generator=draw, flips=(2,))  # type: ignore[arg-type]
        # Global crops come back at the image's size, local ones at half of it.
        out = size if most == 1.0 else tuple(max(n // 2, 1) for n in size)
        view = crop.of(image, size=out).contiguous()  # type: ignore[arg-type]
        return change_contrast(view, draw, strength=self.contrast)  # type: ignore[arg-type]
