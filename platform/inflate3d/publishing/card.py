"""The model card: README.md of a published directory, with the Hub's front matter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from inflate3d.models.publication.heads import is_per_voxel, target_of
from inflate3d.models.publication.layout import PREFIX
from inflate3d.models.publication.places import HUB, parse_hub
from inflate3d.publishing.licences import commercial_use, hub_licence

_CLASSIFICATION = ("image-classification", "video-classification")  # the Hub's words


def render_card(
    config: Mapping[str, Any],
    *,
    parameters: int,
    address: str = "local-dir:PATH",
    picture: str | None = None,
    example: str | None = None,
) -> str:
    """Return the card of a publication as Markdown.

    address: for its loading lines. picture: a file beside it. example: the head that example.nii.gz beside it is for.
    """
    training = config["training"]
    contract = {**dict.fromkeys(("spacing_mm", "orientation", "intensity")), **config["input"]}
    source = config["source_weights"]
    data = training.get("data", [])
    licence, has_source = (source or {}).get("licence"), source is not None
    dimensions = "3D" if "citation" in (source or {}) else "2D"  # those of a zoo say whom to cite
    allowed, why = commercial_use(data, licence, has_source=has_source, dimensions=dimensions)
    # The card is Markdown, not HTML: nothing is escaped.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("card.md.jinja").render(
        config=config,
        net=config["net"],
        input=contract,
        heads={name: _head(head) for name, head in config["heads"].items()},
        classes=config["classes"],
        training=training,
        data=_named_once(data),
        source=source,
        dimensions=dimensions,
        commercial={"allowed": allowed, "why": why},
        front_matter=front_matter(config, address, hub_licence(data, licence, has_source=has_source)),
        example=example,
        hub=parse_hub(address) if address.startswith(HUB) else None,
        parameters=parameters,
        address=address,
        picture=picture,
        intensity=describe_intensity(contract["intensity"]),
    )


def front_matter(config: Mapping[str, Any], address: str, licence: str) -> str:
    """Return what the Hub reads of a card, as YAML (huggingface.co/docs/hub/model-cards): tags, licence, results.

    The results are those of validation, val/TASK/DATASET/METRIC.
    """
    from huggingface_hub import EvalResult, ModelCardData

    net, training = config["net"], config["training"]
    named = PurePath(config["architecture"] if address.startswith(PREFIX) else address)  # a folder may be moved
    measured = dict(training.get("metrics", {}))
    for added in training.get("joined", []):
        measured |= added["metrics"]
    scored = {name: value for name, value in measured.items() if name.count("/") == 3}
    results = []
    for name, value in scored.items():
        _, task, dataset, metric = name.split("/")
        results.append(EvalResult(_task_tag(config, task, dataset), dataset, dataset, metric, round(value, 4)))
    card = ModelCardData(
        library_name="inflate3d",
        tags=["3d", *_tags(config), "timm"],
        base_model=net["base"] if "/" in net["base"] else f"timm/{net['base']}",
        datasets=list(dict.fromkeys(card["name"] for card in training.get("data", []))) or None,
        license=licence,
        license_name="see-model-card" if licence == "other" else None,
        pipeline_tag=pipeline_tag(config),
        model_name=named.name.partition("@")[0] if results else None,
        eval_results=results or None,
    )
    return card.to_yaml()


def _named_once(data: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the datasets without those of which a card would say the same again: one, read through two stems."""
    said = ("title", "licence", "commercial_use", "url", "citation")
    return list({tuple(card.get(key) for key in said): card for card in data}.values())


def _task_tag(config: Mapping[str, Any], task: str, dataset: str) -> str:
    """Return the Hub's tag for what a task does on a dataset; that of the weights where its head was not published."""
    heads = [head for head in config["heads"].values() if (head["task"], head["dataset"]) == (task, dataset)]
    if not heads:
        return pipeline_tag(config)
    if is_per_voxel(heads[0]):
        return "image-segmentation"
    tag = f"{heads[0].get('media')}-classification"
    return tag if tag in _CLASSIFICATION else "image-classification" if _head(heads[0])["names"] else "other"


def _tags(config: Mapping[str, Any]) -> list[str]:
    """Return the media and modalities that the weights take, as tags."""
    inputs = [config["input"], *(head.get("input", {}) for head in config["heads"].values())]
    media = {spec["media"] for spec in inputs if "media" in spec}
    kinds = {"video": ["video"], "volume": ["medical-imaging"]}
    return [tag for name in ("video", "volume") if name in media or not media for tag in kinds[name]]


def pipeline_tag(config: Mapping[str, Any]) -> str:
    """Return the Hub's tag for the task of the weights."""
    own = [head for head in config["heads"].values() if head["dataset"] == config["input"].get("domain")]
    if any(is_per_voxel(head) for head in own):
        return "image-segmentation"
    if not config["classes"]:
        return "image-feature-extraction"
    tag = f"{config['input'].get('media')}-classification"
    return tag if tag in _CLASSIFICATION else "image-classification"


def _head(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the card says of a head: media, what it answers, and what loads it."""
    target = target_of(entry)
    answers, names = ("features", ()) if target is None else (target.describe(), target.answers)
    return {**entry, "answers": answers, "names": names, "segments": is_per_voxel(entry)}


def describe_intensity(intensity: Mapping[str, Any] | None) -> str:
    """Say in words how stored values become the net's input (contracts.Intensity)."""
    if intensity is None:
        return "as the 2D net's"
    if intensity["mode"] == "zscore":
        return "each volume's own mean subtracted, divided by its own standard deviation"
    low, high = intensity["window"]
    mean, std = list(intensity["mean"]), list(intensity["std"])
    return f"clipped to {low:g}..{high:g}, scaled to 0..1, then minus {mean}, divided by {std}"
