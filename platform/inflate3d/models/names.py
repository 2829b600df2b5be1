"""Names that create_model takes."""

from __future__ import annotations

from fnmatch import fnmatch


def list_models(filter: str = "*", *, pretrained: bool = False) -> list[str]:
    """Return timm's and torchvision's names that match a wildcard; `pretrained`: those with 2D weights, with tags."""
    import timm
    from torchvision import models

    names = timm.list_models(pretrained=pretrained, include_tags=pretrained)
    names += [f"torchvision/{n}" for n in models.list_models(module=models)]
    return [n for n in names if fnmatch(n, filter)]
