"""The model card: README.md of a published directory, with the Hub's front matter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from inflate3d.publishing.licences import commercial_use


def render_card(config: Mapping[str, Any], *, parameters: int) -> str:
    """Return the card of a publication as Markdown, from its config.json alone."""
    training = config["training"]
    source = config["source_weights"]
    allowed, why = commercial_use(
        training.get("data", []), (source or {}).get("licence"), has_source=source is not None
    )
    # The card is Markdown, not HTML: nothing is escaped.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("card.md.jinja").render(
        config=config,
        net=config["net"],
        input=config["input"],
        training=training,
        data=training.get("data", []),
        source=source,
        commercial={"allowed": allowed, "why": why},
        parameters=parameters,
        intensity=describe_intensity(config["input"]["intensity"]),
    )


def describe_intensity(intensity: Mapping[str, Any] | None) -> str:
    """Say in words how stored values become the net's (contracts.Intensity)."""
    if intensity is None:
        return "as the 2D net's"
    if intensity["mode"] == "zscore":
        return "each volume's own mean subtracted, divided by its own standard deviation"
    low, high = intensity["window"]
    mean, std = list(intensity["mean"]), list(intensity["std"])
    return f"clipped to {low:g}..{high:g}, scaled to 0..1, then minus {mean}, divided by {std}"
