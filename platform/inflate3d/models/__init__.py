"""Nets by name: create_model, sources of weights, and the training backbone. Names are imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inflate3d.models.backbone import Backbone as Backbone
    from inflate3d.models.backbone_config import BackboneConfig as BackboneConfig
    from inflate3d.models.create import build_net as build_net
    from inflate3d.models.create import create_model as create_model
    from inflate3d.models.names import list_models as list_models
    from inflate3d.models.publication.index import list_pretrained as list_pretrained
    from inflate3d.models.segmenter import Segmenter as Segmenter
    from inflate3d.models.segmenter import create_segmenter as create_segmenter
    from inflate3d.models.transform import create_transform as create_transform

_NAMES = {
    "backbone": ("Backbone",),
    "backbone_config": ("BackboneConfig",),
    "create": ("build_net", "create_model"),
    "names": ("list_models",),
    "publication.index": ("list_pretrained",),
    "segmenter": ("Segmenter", "create_segmenter"),
    "transform": ("create_transform",),
}
_HOME = {name: f"inflate3d.models.{module}" for module, names in _NAMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'inflate3d.models' has no attribute {name!r}")
