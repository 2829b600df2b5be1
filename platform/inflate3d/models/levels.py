"""The levels of a net that heads see: one map a reduction, and how they come out of the net."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from inflate3d.inflation import InflatedFeatureInfo


class Intermediates(nn.Module):
    """A net's forward_intermediates as the forward of a module: the place for hooks, such as those of ZeRO-3.

    It owns nothing, so that the keys of a state_dict are the net's.
    """

    def __init__(self, net: nn.Module, indices: Sequence[int]) -> None:
        super().__init__()
        self._net, self.indices = [net], list(indices)  # in a list: a part of the backbone, not of this

    def forward(self, image_BCDHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the last map and the list of those at `indices`."""
        final, maps = self._net[0].forward_intermediates(image_BCDHW, indices=self.indices)  # type: ignore[operator]
        return final, maps


class Levels(InflatedFeatureInfo):
    """The levels that heads see: one a reduction; and the width of the pooled vector."""

    num_pooled: int


def distinct_levels(net: nn.Module) -> tuple[list[int], Levels]:
    """Return the indices of the last map at each reduction, and their feature info; plain ViTs have one."""
    info: InflatedFeatureInfo = net.feature_info  # type: ignore[assignment]
    last = {entry["reduction"]: index for index, entry in enumerate(info.info)}
    indices = [last[reduction] for reduction in sorted(last)]
    levels = Levels(info.info, tuple(indices))
    with torch.no_grad():
        levels.num_pooled = int(getattr(net, "head_hidden_size", None) or net.num_features)  # type: ignore[arg-type]
    return indices, levels
