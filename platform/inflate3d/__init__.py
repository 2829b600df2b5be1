"""2D weights in, 3D foundation weights out. The public face; everything is imported on first use (PEP 562)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inflate3d.inflation import Inflation as Inflation
    from inflate3d.inflation import InflationPlan as InflationPlan
    from inflate3d.inflation import inflate as inflate
    from inflate3d.models import create_model as create_model
    from inflate3d.models import create_segmenter as create_segmenter
    from inflate3d.models import create_transform as create_transform
    from inflate3d.models import list_models as list_models
    from inflate3d.models import list_pretrained as list_pretrained
    from inflate3d.publishing import publish as publish

__version__ = "0.1.0"

_HOME = {
    "Inflation": "inflate3d.inflation",
    "InflationPlan": "inflate3d.inflation",
    "inflate": "inflate3d.inflation",
    "create_model": "inflate3d.models",
    "create_segmenter": "inflate3d.models",
    "create_transform": "inflate3d.models",
    "list_models": "inflate3d.models",
    "list_pretrained": "inflate3d.models",
    "publish": "inflate3d.publishing",
}

__all__ = [
    "Inflation",
    "InflationPlan",
    "create_model",
    "create_segmenter",
    "create_transform",
    "inflate",
    "list_models",
    "list_pretrained",
    "publish",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'inflate3d' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
