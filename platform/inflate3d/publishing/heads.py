"""Heads that go along with a published backbone: linear classifiers and U-Net decoders, with their classes' names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from inflate3d.errors import InputError
from inflate3d.models.publication.replay import difference, replay_features
from inflate3d.nn import LinearHead, UNetDecoder
from inflate3d.training.module import MultiTaskModule


@dataclass
class PublishedHeads:
    """What config.json says of each dataset's head, and the tensors of all, named <dataset>.<key>."""

    described: dict[str, dict[str, Any]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


def collect_heads(module: MultiTaskModule, inputs: Mapping[str, Mapping[str, Any]]) -> PublishedHeads:
    """Return the heads of every dataset of a run. inputs: each dataset's input contract.

    InputError for a head that is neither a LinearHead nor a UNetDecoder: those alone can be rebuilt without its task.
    """
    found = PublishedHeads()
    for dataset, task in module.task_of.items():
        head = module.heads[task][dataset]  # type: ignore[index]
        card = module.cards[dataset]
        entry: dict[str, Any] = {"task": task, "kind": card.kind, "classes": list(card.classes)}
        if type(head) is LinearHead:
            entry["type"] = "linear"
        elif type(head) is UNetDecoder:
            entry.update(type="unet", channels=[block[0].out_channels for block in head.blocks])  # type: ignore[index]
            entry.update(window=list(module.windows[dataset]) if dataset in module.windows else None)
            entry["window_overlap"] = module.window_overlap
        else:
            raise InputError(
                f"--heads: the head of {dataset!r} is a {type(head).__name__}; only LinearHead and UNetDecoder can be "
                "published. Publish the backbone alone: leave --heads out"
            )
        found.described[dataset] = {**entry, "input": dict(inputs[dataset])}
        found.tensors.update({f"{dataset}.{key}": value for key, value in head.state_dict().items()})
    return found


def install_classifier(net: Any, head: nn.Module) -> bool:
    """Put a linear head in the place of the net's own classifier; return whether the net then answers as both did.

    False, and the net pools as before, where the classifier is no Linear or stands elsewhere than after the pooling.
    """
    assert isinstance(head, LinearHead)
    net.reset_classifier(head.linear.out_features)
    classifier = net.get_classifier()
    if isinstance(classifier, nn.Linear) and classifier.weight.shape == head.linear.weight.shape:
        classifier.load_state_dict(head.linear.state_dict())
        height, width = net.trace_size
        x = torch.randn(1, net.net_spec.in_chans, max(4, net.plan.min_depth), height, width)
        with torch.no_grad():
            net.eval()
            if difference(net(x), head.linear(replay_features(net, x))) < 1e-4:
                return True
    net.reset_classifier(0)
    return False
