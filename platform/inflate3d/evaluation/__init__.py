"""What a run achieves: pictures and a probe of what it has learnt. Names are imported on first use (PEP 562)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inflate3d.evaluation.pictures.curves import plot_curves as plot_curves
    from inflate3d.evaluation.pictures.preview import draw_preview as draw_preview
    from inflate3d.evaluation.pictures.run_picture import draw_run as draw_run
    from inflate3d.evaluation.pictures.samples import plot_samples as plot_samples
    from inflate3d.evaluation.transfer.frozen_probe import FrozenProbe as FrozenProbe

_HOME = {
    "FrozenProbe": "inflate3d.evaluation.transfer.frozen_probe",
    "draw_preview": "inflate3d.evaluation.pictures.preview",
    "draw_run": "inflate3d.evaluation.pictures.run_picture",
    "plot_curves": "inflate3d.evaluation.pictures.curves",
    "plot_samples": "inflate3d.evaluation.pictures.samples",
}

__all__ = ["FrozenProbe", "draw_preview", "draw_run", "plot_curves", "plot_samples"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'inflate3d.evaluation' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
