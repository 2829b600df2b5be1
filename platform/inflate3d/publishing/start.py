"""The weights that a run began from, made again from its own record: 2D weights, inflated, or a publication's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from inflate3d.contracts import DatasetCard
from inflate3d.errors import InputError
from inflate3d.models import Backbone, BackboneConfig
from inflate3d.seeds import mix


def start_of(run_folder: Path, config: BackboneConfig, cards: Mapping[str, DatasetCard], *, seed: int) -> Backbone:
    """Return the backbone of a run before its first step. Needs the 2D weights, or the publication, that it loaded.

    InputError if it began from random weights, or if what it began from cannot be had.
    """
    if not config.pretrained:
        raise InputError(
            f"--interpolate: {run_folder} began from random weights (model.backbone.pretrained false); there is "
            "nothing half way to. Leave it out"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(seed, "weights"))  # as the run did; for what the loaded weights leave open
        try:
            backbone = Backbone(config)
        except InputError as fault:
            raise InputError(f"--interpolate: the weights that {run_folder} began from: {fault}") from fault
        backbone.setup_domains(cards)
    return backbone
