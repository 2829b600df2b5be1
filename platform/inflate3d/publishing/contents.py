"""Contents: what a publication is made of before it is written, of a run's checkpoint or of an earlier publication."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from inflate3d.models.create import create_model
from inflate3d.models.publication.fetch import check_directory
from inflate3d.models.publication.integrity import plain_file
from inflate3d.models.publication.layout import HEADS, NORM_KEY, STEM_KEY, WEIGHTS
from inflate3d.models.publication.schema import read_published_config
from inflate3d.models.publication.tensor_file import read_header, read_tensors


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A net and what is said of it.

    input_spec: the contract that the weights expect, None: the net's own; inputs: those of the other domains.
    norm_domains: each domain and its stem; extra_tensors: their statistics and stems, as model.safetensors names them.
    classes: of the net's own classifier. heads: as config.json describes them, with their tensors in head_tensors.
    training: what the card says of the training.
    """

    net: nn.Module
    input_spec: Mapping[str, Any] | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    norm: str = "shared"
    norm_domains: Mapping[str, str] = field(default_factory=dict)
    extra_tensors: Mapping[str, Tensor] = field(default_factory=dict)
    classes: list[str] | None = None
    heads: Mapping[str, Any] = field(default_factory=dict)
    head_tensors: Mapping[str, Tensor] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


def published_contents(folder: Path, *, with_heads: bool) -> Contents:
    """Return the contents of a published directory, checked by hashes and replay. InputError if it is damaged.

    Without heads the net gives pooled features. Halves in the files come as float32.
    """
    stated = check_directory(folder)
    options: dict[str, Any] = {} if with_heads else {"num_classes": 0}
    net = create_model(f"local-dir:{folder}", pretrained=True, **options)
    config = read_published_config(folder)
    file = plain_file(folder, WEIGHTS)
    extra = [name for name in read_header(file) if name.startswith((NORM_KEY, STEM_KEY))]
    has_heads = with_heads and HEADS in stated
    return Contents(
        net=net,
        input_spec=config["input"],
        inputs=config.get("inputs", {}),
        norm=config["norm"],
        norm_domains=config["norm_domains"],
        extra_tensors=_whole(read_tensors(file, extra)) if extra else {},
        classes=config.get("classes") if with_heads else None,
        heads=config.get("heads", {}) if has_heads else {},
        head_tensors=_whole(read_tensors(plain_file(folder, HEADS))) if has_heads else {},
        training=config.get("training", {}),
    )


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
