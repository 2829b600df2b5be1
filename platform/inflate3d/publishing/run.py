"""publish_run: the backbone of a run's checkpoint, under timm's own keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inflate3d.contracts import DatasetCard
from inflate3d.errors import InputError, unknown_name
from inflate3d.models import Backbone, BackboneConfig
from inflate3d.models.create import build_net
from inflate3d.models.layout import NORM_KEY, STEM_KEY
from inflate3d.nn.domain import Domain, convert_norms
from inflate3d.nn.stems import first_conv_path
from inflate3d.publishing.export import publish
from inflate3d.training.checkpoint import Checkpoint, find_checkpoint
from inflate3d.training.ema import best_weights


def publish_run(run_or_ckpt: str | Path, destination: str, *, which: str = "best", domain: str | None = None) -> Path:
    """Publish the backbone of a run folder's checkpoint (`best` by val/score, else `last`), or of a checkpoint folder.

    domain: the dataset whose stem and running statistics stand under timm's keys (the first one unless given); those of
    the others go along as extra tensors. Returns the folder.
    """
    checkpoint = _find(Path(run_or_ckpt), which)
    state = torch.load(checkpoint.state, map_location="cpu", weights_only=True)
    cards = {name: DatasetCard.from_dict(card) for name, card in state["cards"].items()}
    domain = domain or next(iter(cards))
    if domain not in cards:
        raise unknown_name("domain", domain, cards, where="--domain")
    config = BackboneConfig(**state["backbone"])
    backbone = Backbone(replace(config, pretrained=False))
    backbone.setup_domains(cards)
    weights = {k.removeprefix("backbone."): v for k, v in best_weights(state).items() if k.startswith("backbone.")}
    backbone.load_state_dict(weights)
    net, extra = split_domains(backbone, domain)
    net.is_from_2d_weights = config.pretrained  # type: ignore[assignment]
    return publish(
        net,
        destination,
        input_spec=_input_of(cards[domain], backbone, domain),
        norm=config.norm,
        norm_domains={name: _stem_of(backbone, name) for name in cards},
        extra_tensors=extra,
        training={
            "data": [card.to_dict() for card in cards.values()],
            "domain": domain,
            "steps": checkpoint.step,
            "metrics": {k: v for k, v in checkpoint.metrics.items() if k.startswith("val/")},
        },
    )


def split_domains(backbone: Backbone, domain: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a plain net with one domain's stem and statistics, and the other domains' as extra tensors."""
    names = backbone.domain.names
    own = names.index(domain)
    path = first_conv_path(backbone.net) if backbone.stem_switch is None else backbone.stem_switch.path
    plain: dict[str, Tensor] = {}
    extra: dict[str, Tensor] = {}
    for key, value in backbone.net.state_dict().items():
        base, _, leaf = key.rpartition(".")
        if leaf in ("domain_mean", "domain_var"):
            statistic = f"{base}.running_{leaf.removeprefix('domain_')}"
            plain[statistic] = value[own]
            extra.update({f"{NORM_KEY}{n}.{statistic}": value[i] for i, n in enumerate(names) if i != own})
        elif backbone.stem_switch is not None and base.startswith(f"{path}."):
            stem = base.removeprefix(f"{path}.")
            if stem == _stem_of(backbone, domain):
                plain[f"{path}.{leaf}"] = value
            else:
                extra[f"{STEM_KEY}{stem}.{leaf}"] = value
        else:
            plain[key] = value
    spec = backbone.net.net_spec
    channels = plain[f"{path}.weight"].shape[1]
    net = build_net(replace(spec, in_chans=channels, num_classes=0), pretrained=False)  # type: ignore[type-var, arg-type]
    convert_norms(net, "group" if backbone.config.norm == "group" else "shared", Domain())
    net.load_state_dict(plain)
    return net, extra


def _stem_of(backbone: Backbone, domain: str) -> str:
    switch = backbone.stem_switch
    return "" if switch is None else switch.stem_of_index[backbone.domain.names.index(domain)]


def _input_of(card: DatasetCard, backbone: Backbone, domain: str) -> dict[str, Any]:
    spec = card.to_dict()["input"]
    repeated = backbone.stem_switch is None and len(spec["channels"]) == 1 and backbone.in_chans > 1
    channels = spec["channels"] * backbone.in_chans if repeated else spec["channels"]
    return {
        "axes": "BCDHW",
        **spec,
        "channels": list(channels),
        "kind": card.kind,
        "modality": card.modality,
        "domain": domain,
    }


def _find(path: Path, which: str) -> Checkpoint:
    if not path.is_dir():
        raise InputError(
            f"run {str(path)!r} does not exist; give a run folder (trainer.default_root_dir) or a checkpoint"
        )
    if not (path / "checkpoints").is_dir():
        found = find_checkpoint(path.parent.parent, path)
    else:
        try:
            found = find_checkpoint(path, which)
        except InputError:
            if which != "best":
                raise
            found = find_checkpoint(path, "last")  # a run without validation has no best
    if found is None:
        raise InputError(f"run {path} holds no checkpoint yet; fit first: platform fit --config {path / 'config.yaml'}")
    return found
