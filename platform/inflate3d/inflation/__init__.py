"""2D -> 3D: taps fill the third axis of a kernel, a plan lays kernels and strides along D, folding runs the 2D net.

Names are imported on first use (PEP 562): plans can be read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inflate3d.inflation.errors import InflationError as InflationError
    from inflate3d.inflation.features import InflatedFeatureInfo as InflatedFeatureInfo
    from inflate3d.inflation.layers import folding as folding
    from inflate3d.inflation.network import Inflated as Inflated
    from inflate3d.inflation.network import inflate as inflate
    from inflate3d.inflation.network import inflate_in_place as inflate_in_place
    from inflate3d.inflation.plan import PLAN_NAMES as PLAN_NAMES
    from inflate3d.inflation.plan import PRESETS as PRESETS
    from inflate3d.inflation.plan import InflationPlan as InflationPlan
    from inflate3d.inflation.plan import NetInput as NetInput
    from inflate3d.inflation.plan import resolve_plan as resolve_plan
    from inflate3d.inflation.shown import show_map as show_map
    from inflate3d.inflation.spec import AttentionName as AttentionName
    from inflate3d.inflation.spec import Inflation as Inflation
    from inflate3d.inflation.spec import StatisticsName as StatisticsName
    from inflate3d.inflation.spec import TimePadding as TimePadding
    from inflate3d.inflation.taps import TAP_NAMES as TAP_NAMES
    from inflate3d.inflation.taps import Taps as Taps
    from inflate3d.inflation.taps import inflate_kernel as inflate_kernel

_NAMES = {
    "features": ("InflatedFeatureInfo",),
    "layers": ("folding",),
    "network": ("Inflated", "inflate", "inflate_in_place"),
    "plan": ("PLAN_NAMES", "PRESETS", "InflationPlan", "NetInput", "resolve_plan"),
    "shown": ("show_map",),
    "spec": ("AttentionName", "Inflation", "StatisticsName", "TimePadding"),
    "taps": ("TAP_NAMES", "Taps", "inflate_kernel"),
    "errors": ("InflationError",),
}
_HOME = {name: f"inflate3d.inflation.{module}" for module, names in _NAMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'inflate3d.inflation' has no attribute {name!r}")
