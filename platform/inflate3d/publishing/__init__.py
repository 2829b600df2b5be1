"""Publishing: an inflated net becomes a directory with its contract, its card and a replay. Imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inflate3d.publishing.export import publish as publish
    from inflate3d.publishing.from_run import publish_run as publish_run
    from inflate3d.publishing.joined_heads import publish_with_heads as publish_with_heads
    from inflate3d.publishing.soup import publish_soup as publish_soup

_HOME = {
    "publish": "inflate3d.publishing.export",
    "publish_run": "inflate3d.publishing.from_run",
    "publish_soup": "inflate3d.publishing.soup",
    "publish_with_heads": "inflate3d.publishing.joined_heads",
}


def __getattr__(name: str) -> Any:
    # publish needs only the light core, publish_run and publish_soup also the trainer's checkpoints.
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'inflate3d.publishing' has no attribute {name!r}")
