"""Names that create_model takes."""

from __future__ import annotations

import sys
from fnmatch import fnmatch


def list_models(filter: str = "*", *, pretrained: bool = False) -> list[str]:
    """Return timm's and torchvision's names that match a wildcard; `pretrained`: those with 2D weights, with tags.

    Published 3D weights are told by list_pretrained, also where `inflate3d.timm` has entered them into timm's registry.
    """
    import timm
    from torchvision import models

    names = timm.list_models(pretrained=pretrained, include_tags=pretrained)
    names += [f"torchvision/{n}" for n in models.list_models(module=models)]
    own = getattr(sys.modules.get("inflate3d.timm"), "default_cfgs", {})
    return [n for n in names if fnmatch(n, filter) and n.partition(".")[0] not in own]
