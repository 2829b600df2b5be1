"""2D nets and weights from timm."""

from __future__ import annotations

from typing import Any

import timm
from timm.models import is_model, split_model_name_tag
from torch import nn

from inflate3d.contracts import zoo_names
from inflate3d.errors import InputError, unknown_name
from inflate3d.models.publication.index import list_pretrained
from inflate3d.models.spec import NetSpec

TRACE_SIZES = (64, 128)  # enough for a /32 net to keep a map of 2x2; some need more


def build_timm(spec: NetSpec, *, pretrained: bool, cache_dir: str | None = None) -> nn.Module:
    """Return timm's 2D net for a spec. Raises InputError for an unknown name or weights that cannot be had."""
    check_timm_name(spec.name, pretrained=pretrained)
    kwargs: dict[str, Any] = dict(spec.timm_kwargs, in_chans=spec.in_chans)
    if spec.features_only:
        kwargs.update(features_only=True, out_indices=spec.out_indices)
    else:
        kwargs.update(num_classes=spec.num_classes, global_pool=spec.global_pool)
    if spec.drop_path_rate:
        kwargs["drop_path_rate"] = spec.drop_path_rate
    try:
        return timm.create_model(spec.name, pretrained=pretrained, cache_dir=cache_dir, **kwargs)
    except (OSError, RuntimeError) as error:
        if pretrained and _is_about_fetching(error):
            told = next(iter(str(error).splitlines()), "no such file, as timm's log says")[:160]
            raise InputError(
                f"the 2D weights of {spec.name!r} cannot be fetched ({type(error).__name__}: {told}). "
                "Give a local file: pretrained_cfg_overlay=dict(file='weights.safetensors') in Python, "
                "model.backbone.timm_kwargs.pretrained_cfg_overlay: {file: weights.safetensors} in a config, "
                "--pretrained weights.safetensors to `platform transfer`; or do without: pretrained false"
            ) from error
        raise


def check_timm_name(name: str, *, pretrained: bool = False) -> None:
    """Raise InputError with close names unless timm has the architecture (and the tag, where one is given)."""
    architecture, tag = split_model_name_tag(name)
    if not is_model(architecture):
        known = [*timm.list_models(), *list_pretrained(), *zoo_names()]
        raise unknown_name("model", name, known, see="platform models list, inflate3d.list_pretrained()")
    tags = timm.list_models(f"{architecture}.*", include_tags=True) if tag else []
    if tag and name not in tags:
        raise unknown_name("weights", name, tags, see=f"platform models list '{architecture}*'")
    if pretrained and not tag and not timm.models.is_model_pretrained(architecture):
        return  # an overlay may bring the file; timm says so itself if none does


def trace_sizes(net: nn.Module, img_size: Any = None) -> list[tuple[int, int]]:
    """Return the (H, W) on which a net may be traced: its own where that is fixed, else small ones first.

    img_size: what the net was built with, where that was given; timm's feature nets no longer show it themselves.
    """
    if img_size is not None:
        return [(img_size, img_size) if isinstance(img_size, int) else tuple(img_size)]
    cfg = getattr(net, "pretrained_cfg", None) or {}
    own = tuple((cfg.get("input_size") or (3, 224, 224))[1:])
    embed: Any = getattr(net, "patch_embed", None)
    if getattr(embed, "img_size", None):
        own = tuple(embed.img_size)  # img_size= was given
    if cfg.get("fixed_input_size", False):
        return [own]  # type: ignore[list-item]
    # An unpadded net needs room: twice what it says it takes at the least.
    smallest = 2 * max((cfg.get("min_input_size") or (3, 0, 0))[1:])
    step = side_step(net)
    sizes = [-(-max(size, smallest) // step) * step for size in TRACE_SIZES]
    return [(size, size) for size in sizes if size < min(own)] + [own]  # type: ignore[list-item]


def side_step(net: Any) -> int:
    """What an image's sides are a multiple of: 32, or the net's own reduction where that does not divide 32."""
    info = getattr(net, "feature_info", None) or []
    reduction = max((entry["reduction"] for entry in getattr(info, "info", info)), default=32)
    return 32 if 32 % reduction == 0 else int(reduction)


def _is_about_fetching(error: Exception) -> bool:
    module = type(error).__module__
    return module.startswith(("huggingface_hub", "httpx", "requests", "urllib")) or isinstance(error, OSError)
