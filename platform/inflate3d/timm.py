"""`import inflate3d.timm`: timm.create_model takes the short names of published 3D weights, as of 2D ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from inflate3d.errors import InputError
from inflate3d.models import create_model
from inflate3d.models.publication.index import Entry, entries

default_cfgs: dict[str, Any] = {}


def register() -> list[str]:
    """Register every name of the index with timm, and return them. Comes with the import; again after a new index.

    InputError for a name whose architecture timm has itself: an index must not stand in for timm's own.
    """
    found = entries()
    by_architecture: dict[str, list[Entry]] = {}
    for entry in found.values():
        by_architecture.setdefault(entry.name.partition(".")[0], []).append(entry)
    for architecture, tagged in by_architecture.items():
        _register(architecture, tagged)
    return sorted(found)


def _register(architecture: str, tagged: Sequence[Entry]) -> None:
    from timm.models import is_model, model_entrypoint

    if is_model(architecture):
        if getattr(model_entrypoint(architecture), "__module__", "") != __name__:
            raise InputError(f"the index names {tagged[0].name!r}, but timm has an architecture {architecture!r}")
        if {f"{architecture}.{tag}" for tag in default_cfgs[architecture].tags} == {e.name for e in tagged}:
            return
    # timm counts a name as pretrained where its entry says where the weights lie.
    cfgs = generate_default_cfgs({entry.name: {"url": entry.source, "license": entry.licence} for entry in tagged})
    default_cfgs[architecture] = cfgs[architecture]
    entrypoint = _entrypoint(architecture, tagged[0].name.partition(".")[2])
    entrypoint.__name__ = entrypoint.__qualname__ = architecture
    register_model(entrypoint)


def _entrypoint(architecture: str, first_tag: str) -> Callable[..., nn.Module]:
    def build(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        if pretrained_cfg_overlay:
            raise InputError(f"{architecture}: pretrained_cfg_overlay is for 2D weights; published ones are whole")
        tag = pretrained_cfg if isinstance(pretrained_cfg, str) else getattr(pretrained_cfg, "tag", None)
        return create_model(f"{architecture}.{tag or first_tag}", pretrained, cache_dir=cache_dir, **kwargs)

    return build


register()
