"""Frozen features of a target's samples, kept in files named by their content, so a second probe is quick."""

# N samples, F features

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from inflate3d.contracts import Split
from inflate3d.evaluation.transfer.build import weights_digest
from inflate3d.evaluation.transfer.holdout import Listed
from inflate3d.evaluation.transfer.protocol import digest
from inflate3d.evaluation.transfer.target import Target
from inflate3d.models import Backbone

_FORMAT = "inflate3d-features/1"


READS = ("pooled", "levels")  # what timm's classifier sees; the spatial mean of every level's map, side by side
TARGET = "target"
Stored = dict[str, Tensor]
Part = tuple[Sequence[Listed], Split]
Prepare = Callable[[], None] | None


def origin_of(backbone: Backbone) -> str:
    """Return 16 hex digits of what determines a backbone's features: its weights and its inflation."""
    return digest(weights_digest(backbone), backbone.net.net_spec.to_dict())  # type: ignore[union-attr, operator]


class FeatureCache:
    """Features of samples, computed once for the same weights, plan, shards, samples and input settings."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @torch.no_grad()
    def features(
        self, backbone: Backbone, target: Target, parts: Mapping[str, Part], *, origin: str, prepare: Prepare = None
    ) -> dict[str, Stored]:
        """Return the features (N, F) by kind, and the classes (N,), of each part's samples in order.

        origin: `origin_of` the backbone, before `prepare`, which is called once if anything has to be computed.
        """
        found = {}
        for name, (samples, split) in parts.items():
            inputs = target.protocol.to_dict()["sample"], [s.place for s in samples], [s.key for s in samples]
            path = self.folder / f"{digest(_FORMAT, origin, target.manifest.digest, split, *inputs)}.safetensors"
            if not path.is_file():
                if prepare is not None:
                    prepare()
                    prepare = None
                self._write(path, self._compute(backbone.eval(), target, samples, split))
            found[name] = load_file(path)
        return found

    def _compute(self, backbone: Backbone, target: Target, samples: Sequence[Listed], split: Split) -> Stored:
        device = next(backbone.parameters()).device
        parts: dict[str, list[Tensor]] = {name: [] for name in (*READS, TARGET)}
        for batch in target.batches(samples, split):
            features = backbone(batch.image.to(device), domain=batch.dataset)
            parts["pooled"].append(features.pooled.float().cpu())
            means = [level.float().mean(dim=(2, 3, 4)) for level in features.maps]
            parts["levels"].append(torch.cat(means, dim=1).cpu())
            parts[TARGET].append(target.value(batch).clone())
        return {name: torch.cat(found) for name, found in parts.items()}

    def _write(self, path: Path, stored: Stored) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
        save_file(stored, temporary, {"format": _FORMAT})
        temporary.replace(path)
