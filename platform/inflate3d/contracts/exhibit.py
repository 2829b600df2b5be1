"""Exhibits: what a person sees of a task on one sample, where there is no truth to draw beside an answer."""

# C channel, D H W voxels along z y x, or time and pixels.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Panel:
    """One image of an exhibit, as the net sees it. marks_DHW: int64 labels from 1 on, whose voxels are coloured."""

    caption: str
    image_CDHW: Tensor
    marks_DHW: Tensor | None = None


@dataclass(frozen=True)
class Exhibit:
    """Panels from left to right, and in words what the task said of them.

    one_scale: grey means the same in all of them, that of the first; else each is stretched by itself.
    """

    said: str
    panels: Sequence[Panel]
    one_scale: bool = False
