"""Names that create_model takes."""

from __future__ import annotations

import sys
from fnmatch import fnmatch

from inflate3d.contracts import zoo_names


def list_models(filter: str = "*", *, pretrained: bool = False) -> list[str]:
    """Return names of timm, torchvision and zoos that match a wildcard; `pretrained`: those with weights, with tags.

    Published 3D weights are told by list_pretrained, also where `inflate3d.timm` has entered them into timm's registry.
    """
    import timm
    from torchvision import models

    names = timm.list_models(pretrained=pretrained, include_tags=pretrained)
    names += [f"torchvision/{n}" for n in models.list_models(module=models)]
    names += zoo_names()
    own = getattr(sys.modules.get("inflate3d.timm"), "default_cfgs", {})
    return [n for n in names if fnmatch(n, filter) and n.partition(".")[0] not in own]
