"""Feature levels of an inflated net: timm's FeatureInfo, with the reduction along D beside the spatial one."""

from __future__ import annotations

import copy
import math
from typing import Any

from timm.models import FeatureInfo

from inflate3d.inflation.plan import InflationPlan
from inflate3d.sample import Triple


class InflatedFeatureInfo(FeatureInfo):
    """As timm's: channels(), reduction() (int, of H and W), module_name(); and reduction_dhw()."""

    num_pooled: int = 0

    @classmethod
    def of(cls, info: Any, plan: InflationPlan, deepest: int) -> InflatedFeatureInfo:
        """Read timm's feature_info (a list of dicts, or a FeatureInfo) and add what the plan does along D."""
        entries = copy.deepcopy(list(info.info if isinstance(info, FeatureInfo) else info))
        indices = info.out_indices if isinstance(info, FeatureInfo) else tuple(range(len(entries)))
        for entry in entries:
            level = round(math.log2(entry["reduction"]))
            entry["reduction_d"] = plan.stride(0, min(level, deepest))
        return cls(entries, indices)

    def reduction_dhw(self, idx: int | list[int] | None = None) -> Any:
        """Return (D, H, W) reductions, one triple a level, or that of one level for an int `idx`."""
        along_d, spatial = self.get("reduction_d", idx), self.get("reduction", idx)
        if isinstance(spatial, list):
            return [(d, s, s) for d, s in zip(along_d, spatial, strict=True)]
        triple: Triple = (along_d, spatial, spatial)
        return triple
