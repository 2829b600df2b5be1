"""Heads that go along with a published backbone, as each describes itself, with what they answer for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from inflate3d.contracts import SupervisedTask
from inflate3d.errors import InputError
from inflate3d.models.publication.replay import difference, replay_features
from inflate3d.nn import Head
from inflate3d.training.assignment import PlacedHead, placed_heads
from inflate3d.training.module import MultiTaskModule


@dataclass
class PublishedHeads:
    """What config.json says of each head, and the tensors of all, named <head>.<key>."""

    described: dict[str, dict[str, Any]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


def collect_heads(module: MultiTaskModule, inputs: Mapping[str, Mapping[str, Any]]) -> PublishedHeads:
    """Return the heads of a run. inputs: each dataset's input contract.

    Datasets that share a decoder have a head each, over the same tensors. What a task of its own kind trains beside
    Heads stays with the run. InputError for a supervised task's head that is none, and for one whose type is no
    plug-in: it could not be rebuilt.
    """
    found, stored = PublishedHeads(), dict[int, str]()
    for name, placed in placed_heads(module.tasks).items():
        if isinstance(placed.module, Head):
            tensors = stored.setdefault(id(placed.module), name)
            found.described[name] = {
                **_described(placed, placed.module),
                "window": list(module.windows[placed.dataset]) if placed.dataset in module.windows else None,
                "window_overlap": module.window_overlap,
                "input": dict(inputs[placed.dataset]),
                **({} if tensors == name else {"tensors": tensors}),
            }
            found.tensors.update({f"{tensors}.{key}": value for key, value in placed.module.state_dict().items()})
        elif isinstance(module.tasks[placed.task], SupervisedTask):
            raise InputError(
                f"--heads: the head of {name!r} is a {type(placed.module).__name__}; derive it from inflate3d.nn.Head, "
                "or publish the backbone alone: leave --heads out"
            )
    return found


def _described(placed: PlacedHead, head: Head) -> dict[str, Any]:
    own = () if placed.target is None or placed.label_names == placed.target.names else placed.label_names
    return {
        "type": head.type_name(),
        "task": placed.task,
        "dataset": placed.dataset,
        "media": placed.card.media,
        "target": None if placed.target is None else placed.target.to_dict(),
        "head": head.describe(),
        **({"label_names": list(own)} if own else {}),
    }


def own_classifier(module: MultiTaskModule, domain: str) -> tuple[nn.Linear, list[str]] | None:
    """Return the layer and the names of a dataset's own classifier; None where it has none, or several heads."""
    placed = [h for h in placed_heads(module.tasks).values() if h.dataset == domain]
    if len(placed) != 1 or not isinstance(placed[0].module, Head) or not placed[0].module.classifier:
        return None
    layer = placed[0].module.get_submodule(placed[0].module.classifier.rstrip("."))
    assert isinstance(layer, nn.Linear)
    return layer, list(placed[0].target.names) if placed[0].target is not None else []


def install_classifier(net: Any, layer: nn.Linear) -> bool:
    """Put a layer in the place of the net's own classifier; return whether the net then answers as both did.

    False, and the net pools as before, if the classifier is not a Linear or does not follow the pooling directly.
    """
    net.reset_classifier(layer.out_features)
    classifier = net.get_classifier()
    if isinstance(classifier, nn.Linear) and classifier.weight.shape == layer.weight.shape:
        classifier.load_state_dict(layer.state_dict())
        height, width = net.trace_size
        x = torch.randn(1, net.net_spec.in_chans, max(4, net.plan.min_depth), height, width)
        with torch.no_grad():
            net.eval()
            if difference(net(x), layer(replay_features(net, x))) < 1e-4:
                return True
    net.reset_classifier(0)
    return False
