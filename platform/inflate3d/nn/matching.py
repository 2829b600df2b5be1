"""Matching: how alike the features of two nets are, level by level; and a teacher that has a name."""

# B batch, C channel, D H W voxels.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inflate3d.contracts import Features


class LevelMatch(nn.Module):
    """The mean cosine of a student's and a teacher's maps, over chosen levels, and of their pooled features.

    A 1x1x1 convolution answers for the student where widths differ. pooled: width of the teacher's pooled features
    that are compared as they are; 0: they are not compared.
    """

    def __init__(self, own: Sequence[int], theirs: Sequence[int], levels: Sequence[int], *, pooled: int) -> None:
        super().__init__()
        self.indices, self.pooled = list(levels), pooled
        self.answers = nn.ModuleList(
            nn.Identity() if own[i] == theirs[i] else nn.Conv3d(own[i], theirs[i], 1) for i in self.indices
        )

    def cosine(self, student: Features, teacher: Features) -> Tensor:
        """Return the mean cosine, a scalar, over levels and pooled features."""
        found = [level.mean() for level in self.cosines(student, teacher)]
        if self.pooled:
            found.append(F.cosine_similarity(student.pooled.float(), teacher.pooled.float(), dim=1).mean())
        return torch.stack(found).mean()

    def cosines(self, student: Features, teacher: Features) -> list[Tensor]:
        """Return the cosine at each place, (B, D_l, H_l, W_l), one a level; unlike sizes meet at the student's."""
        found = []
        for i, answer in zip(self.indices, self.answers, strict=True):
            mine, theirs = answer(student.maps[i]).float(), teacher.maps[i].float()
            if theirs.shape[2:] != mine.shape[2:]:
                theirs = F.interpolate(theirs, size=mine.shape[2:], mode="trilinear", align_corners=False)
            found.append(F.cosine_similarity(mine, theirs, dim=1))
        return found

    def forward(self, features: Features) -> Tensor:
        """Return the sum of what answers for the student: what an idle step touches."""
        parts = [answer(features.maps[i]).sum() for i, answer in zip(self.indices, self.answers, strict=True)]
        return torch.stack(parts).sum()


class NamedTeacher(nn.Module):
    """A frozen net by its name, with pretrained weights where there are any: called as an encoder, it gives maps."""

    def __init__(self, *, in_chans: int, **given: Any) -> None:
        """given: arguments of create_model, `name` among them; pretrained, and plan 2d, where they do not say."""
        super().__init__()
        # Of the room above: tasks make their teachers when a run begins, not when this file is imported.
        from inflate3d import create_model

        net: Any = create_model(
            **{"pretrained": True, "plan": "2d", **given, "features_only": True, "in_chans": in_chans}
        )
        self.net, self.channels = net, list(net.feature_info.channels())
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> NamedTeacher:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, view_BCDHW: Tensor, *, domain: str) -> Features:
        """Return its maps; the domain is the student's, and means nothing here."""
        maps: list[Tensor] = self.net(view_BCDHW)  # type: ignore[operator]
        size: tuple[int, int, int] = tuple(view_BCDHW.shape[2:])  # type: ignore[assignment]
        return Features(maps, maps[-1].mean(dim=(2, 3, 4)), size)
