"""NetSpec: everything that rebuilds an inflated net, as it is written into a published directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inflate3d.errors import unknown_name
from inflate3d.inflation import AttentionName, InflationPlan, StatisticsName, Taps


@dataclass(frozen=True)
class NetSpec:
    """A 2D architecture's name and arguments, and how it is inflated. num_classes None: the architecture's own."""

    name: str
    taps: Taps
    plan: InflationPlan
    attention: AttentionName = "frame"
    statistics: StatisticsName = "clip"
    in_chans: int = 3
    num_classes: int | None = None
    features_only: bool = False
    out_indices: Sequence[int] | int | None = None
    global_pool: str | None = None
    drop_path_rate: float = 0.0
    timm_kwargs: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; what says only where 2D weights came from is left out."""
        kwargs = {k: v for k, v in self.timm_kwargs.items() if k not in _SOURCES_OF_WEIGHTS}
        return {
            "base": self.name,
            "in_chans": self.in_chans,
            "num_classes": self.num_classes,
            "global_pool": self.global_pool,
            "base_kwargs": kwargs,
            "inflation": {"taps": self.taps.name, "overshoot": self.taps.overshoot},
            "plan": self.plan.to_dict(),
            "attention": self.attention,
            "statistics": self.statistics,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NetSpec:
        """Read a spec back; unknown keys are refused."""
        allowed = (
            *("base", "in_chans", "num_classes", "global_pool", "base_kwargs"),
            *("inflation", "plan", "attention", "statistics"),
        )
        for key in data:
            if key not in allowed:
                raise unknown_name("key", key, allowed, where="config.json: net")
        taps = data["inflation"]
        return cls(
            name=data["base"],
            taps=Taps(taps["taps"], taps["overshoot"]),
            plan=InflationPlan.from_dict(data["plan"]),
            attention=data.get("attention", "frame"),
            statistics=data.get("statistics", "frame"),
            in_chans=data["in_chans"],
            num_classes=data["num_classes"],
            global_pool=data.get("global_pool"),
            timm_kwargs=dict(data.get("base_kwargs", {})),
        )


_SOURCES_OF_WEIGHTS = ("pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
