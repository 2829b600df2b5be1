"""publish_run: the backbone of a run's checkpoint, under timm's own keys, and its heads on request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inflate3d.contracts import DatasetCard
from inflate3d.errors import InputError, unknown_name
from inflate3d.models import Backbone, BackboneConfig
from inflate3d.models.create import build_net
from inflate3d.models.input_contract import intensity_of
from inflate3d.models.publication.layout import COLOUR_KEY, NORM_KEY, STEM_KEY
from inflate3d.nn.domain import Domain, convert_norms
from inflate3d.nn.stems import COLOUR_PART, first_conv_path
from inflate3d.publishing.additions import Additions
from inflate3d.publishing.average import averaged
from inflate3d.publishing.contents import Contents
from inflate3d.publishing.destination import parse_destination
from inflate3d.publishing.export import Outcome, export
from inflate3d.publishing.heads import PublishedHeads, collect_heads, install_classifier, own_classifier
from inflate3d.publishing.precision import Precision
from inflate3d.publishing.recalibrated import Recalibration, recalibrated
from inflate3d.publishing.start import start_of
from inflate3d.training.checkpoints.ema import best_weights
from inflate3d.training.checkpoints.store import Checkpoint, find_checkpoint
from inflate3d.training.module import MultiTaskModule
from inflate3d.training.run.folder import CONFIG, read_run_config
from inflate3d.training.run.saved import load_module, without_weights
from inflate3d.training.run.standing import training_cost

NOTHING = Additions()


def publish_run(
    run_or_ckpt: str | Path,
    destination: str,
    *,
    which: str = "best",
    domain: str | None = None,
    with_heads: bool = False,
    interpolate: float = 1.0,
    recalibrate: Sequence[str] = (),
    root: str | None = None,
    additions: Additions = NOTHING,
    precision: Precision = "float32",
    name: str | None = None,
    dry_run: bool = False,
) -> Outcome:
    """Publish the backbone of a run folder's checkpoint (`best` by val/score, else `last`), or of a checkpoint folder.

    domain: the dataset whose stem and running statistics are stored under timm's keys (default: the first); those of
    the others are extra tensors. with_heads: classifiers and decoders too; the domain's own classifier becomes
    the net's. interpolate: how far from the run's start to the trained weights (see run_contents). recalibrate:
    DATASET[:SPLIT], whose statistics are computed again (see recalibrated), from shards in `root` (default: the run's).
    additions: results, notes and transfers for the card. precision: "float16" halves the files. name: the short name in
    an index. dry_run: nothing is written.
    """
    parse_destination(destination)
    wanted = [Recalibration.parse(text) for text in recalibrate]
    contents = run_contents(run_or_ckpt, which=which, domain=domain, with_heads=with_heads, alpha=interpolate)
    if wanted:
        contents = recalibrated(contents, wanted, root or shards_root(run_or_ckpt))
    contents = replace(contents, training={**contents.training, **additions.to_training()})
    return export(contents, destination, precision=precision, name=name, pages=additions.reports, dry_run=dry_run)


def run_contents(
    run_or_ckpt: str | Path, *, which: str = "best", domain: str | None = None, with_heads: bool, alpha: float = 1.0
) -> Contents:
    """Return what a run publishes, with theta0 + alpha (theta - theta0) for every weight and statistic of the backbone.

    theta: the checkpoint's weights, the average where the run has an EMA. theta0: those before its first step, of every
    stem and domain. 0: the start itself, 1: the trained weights themselves, which need no start. InputError for heads
    with alpha below 1: they were trained on theta.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"--interpolate is {alpha:g}; it must be between 0 (the run's start) and 1 (trained)")
    if with_heads and alpha < 1:
        raise InputError(
            f"--interpolate {alpha:g}: heads read the trained weights and know no others; leave --heads out, and train "
            "heads on what is published"
        )
    checkpoint = _find(Path(run_or_ckpt), which)
    state = torch.load(checkpoint.state, map_location="cpu", weights_only=True)
    trained = _trained(checkpoint, state, domain=domain, with_heads=with_heads)
    if alpha == 1:
        return trained
    run_folder, config = checkpoint.path.parent.parent, BackboneConfig(**state["backbone"])
    start = start_of(run_folder, config, _cards_of(state), seed=seed_of(run_folder))
    net, extra = split_domains(start, trained.training["domain"])
    between = averaged([replace(trained, net=net, extra_tensors=extra), trained], [1 - alpha, alpha])
    told = {"metrics": {}, "interpolation": {"alpha": alpha, "start": config.name}}  # the metrics are theta's
    return replace(between, training={**trained.training, **told})


def _trained(checkpoint: Checkpoint, state: Mapping[str, Any], *, domain: str | None, with_heads: bool) -> Contents:
    run_folder, cards, config = checkpoint.path.parent.parent, _cards_of(state), BackboneConfig(**state["backbone"])
    domain = _domain_of(cards, domain)
    module = load_module(run_folder, str(checkpoint.path)) if with_heads else None
    backbone = module.backbone if module else _backbone_of(config, cards, state)
    net, extra = split_domains(backbone, domain)
    _note_source(net, config, state)
    inputs = _inputs_of(run_folder, backbone, cards, state.get("seen", {}))
    heads, classes = _heads_of(module, net, domain, inputs)
    return Contents(
        net=net,
        input_spec=inputs[domain],
        inputs={name: spec for name, spec in inputs.items() if name != domain},
        norm=config.norm,
        norm_domains={name: _stem_of(backbone, name) for name in cards},
        extra_tensors=extra,
        classes=classes,
        heads=heads.described,
        head_tensors=heads.tensors,
        training={**_training_of(checkpoint, state), "domain": domain},
    )


def _cards_of(state: Mapping[str, Any]) -> dict[str, DatasetCard]:
    return {name: DatasetCard.from_dict(card) for name, card in state["cards"].items()}


def seed_of(run_folder: Path) -> int:
    """Return the seed of a run. InputError for a checkpoint without its run."""
    return int(read_run_config(run_folder).get("seed_everything") or 0)


def shards_root(run_or_ckpt: str | Path) -> str:
    """Return where a run's shards are. InputError for a checkpoint without its run."""
    folder = Path(run_or_ckpt)
    run_folder = folder if (folder / "checkpoints").is_dir() else folder.parent.parent
    return str(read_run_config(run_folder)["data"]["root"])


def _note_source(net: Any, config: BackboneConfig, state: Mapping[str, Any]) -> None:
    """Tell a net which 2D weights it comes from: its own, or those of the publication that the run began with."""
    net.is_from_2d_weights = config.pretrained
    if "ancestor" in state:
        net.source_weights = state["ancestor"]["source"]


def _domain_of(cards: Mapping[str, DatasetCard], domain: str | None) -> str:
    domain = domain or next(iter(cards))
    if domain not in cards:
        raise unknown_name("domain", domain, cards, where="--domain")
    return domain


def _inputs_of(
    run_folder: Path, backbone: Backbone, cards: Mapping[str, DatasetCard], seen: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the input contract of every domain, with what its training volumes were like where shards told."""
    samples = _samples_of(run_folder)
    found = {name: _input_of(card, backbone, name, samples.get(name)) for name, card in cards.items()}
    return {name: {**spec, "seen": seen[name]} if name in seen else spec for name, spec in found.items()}


def _heads_of(
    module: MultiTaskModule | None, net: nn.Module, domain: str, inputs: Mapping[str, Any]
) -> tuple[PublishedHeads, list[str] | None]:
    """Return a module's heads, and the classes of the net where the domain's own classifier became the net's."""
    if module is None:
        return PublishedHeads(), None
    heads = collect_heads(module, inputs)
    own = own_classifier(module, domain)
    return heads, own[1] if own is not None and install_classifier(net, own[0]) else None


def _training_of(checkpoint: Checkpoint, state: Mapping[str, Any]) -> dict[str, Any]:
    """What the card says of the training: data, steps, seed, metrics, cost."""
    run_folder = checkpoint.path.parent.parent
    return {
        "data": _with_ancestors(list(state["cards"].values()), state),
        "steps": checkpoint.step,
        **({"seed": seed_of(run_folder)} if (run_folder / CONFIG).is_file() else {}),
        "metrics": {k: v for k, v in checkpoint.metrics.items() if k.startswith("val/")},
        "cost": training_cost(run_folder, checkpoint),
    }


def _backbone_of(config: BackboneConfig, cards: Mapping[str, DatasetCard], state: Mapping[str, Any]) -> Backbone:
    backbone = Backbone(without_weights(config, state))
    backbone.setup_domains(cards)
    weights = {k.removeprefix("backbone."): v for k, v in best_weights(state).items() if k.startswith("backbone.")}
    backbone.load_state_dict(weights)
    return backbone


def _with_ancestors(cards: list[dict[str, Any]], state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Add the data of the published weights that a run started from: their licences apply to these weights too."""
    names = {card["name"] for card in cards}
    return cards + [card for card in state.get("ancestor", {}).get("data", []) if card["name"] not in names]


def _samples_of(run_folder: Path) -> dict[str, Any]:
    """The sample settings of each dataset; empty for a checkpoint without its run."""
    if not (run_folder / CONFIG).is_file():
        return {}
    datasets = read_run_config(run_folder)["data"]["datasets"]
    return {name: values.get("sample") for name, values in datasets.items() if values.get("sample")}


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
        elif key == f"{path}.{COLOUR_PART}":
            extra[COLOUR_KEY] = value
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


def _input_of(card: DatasetCard, backbone: Backbone, domain: str, sample: Any) -> dict[str, Any]:
    spec = card.to_dict()["input"]
    intensity = intensity_of({**spec, "sample": sample})
    assert intensity is not None
    repeated = backbone.stem_switch is None and len(spec["channels"]) == 1 and backbone.in_chans > 1
    channels = spec["channels"] * backbone.in_chans if repeated else spec["channels"]
    return {
        "axes": "BCDHW",
        **spec,
        "channels": list(channels),
        "intensity": asdict(intensity),
        "media": card.media,
        "modality": card.modality,
        "domain": domain,
        **({"sample": sample} if sample else {}),
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
        raise InputError(f"run {path} has no checkpoint yet; run first: platform fit --config {path / 'config.yaml'}")
    return found
