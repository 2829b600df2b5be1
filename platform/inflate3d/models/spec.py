"""NetSpec: everything that rebuilds an inflated net, as it is written into a published directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inflate3d.inflation import Inflation


@dataclass(frozen=True)
class NetSpec:
    """A 2D architecture's name and arguments, and how it is inflated. num_classes None: the architecture's own."""

    name: str
    inflation: Inflation
    in_chans: int = 3
    num_classes: int | None = None
    features_only: bool = False
    out_indices: Sequence[int] | int | None = None
    global_pool: str | None = None
    drop_path_rate: float = 0.0
    timm_kwargs: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, the words of inflation among them; what names a source of weights is left out."""
        words = self.inflation.to_dict()
        return {
            "base": self.name,
            "in_chans": self.in_chans,
            "num_classes": self.num_classes,
            "global_pool": self.global_pool,
            "base_kwargs": {k: v for k, v in self.timm_kwargs.items() if k not in _SOURCES_OF_WEIGHTS},
            "inflation": {"taps": words.pop("inflation"), "overshoot": words.pop("overshoot")},
            **words,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NetSpec:
        """Read a spec back; unknown keys are refused."""
        words = dict(data)
        taps = words.pop("inflation")
        return cls(
            name=words.pop("base"),
            in_chans=words.pop("in_chans"),
            num_classes=words.pop("num_classes"),
            global_pool=words.pop("global_pool", None),
            timm_kwargs=dict(words.pop("base_kwargs", {})),
            inflation=Inflation.from_dict({"inflation": taps["taps"], "overshoot": taps["overshoot"], **words}),
        )


_SOURCES_OF_WEIGHTS = ("pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
