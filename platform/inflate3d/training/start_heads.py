"""Heads that begin as published ones: `model.start_heads` names a head of the backbone's publication for a dataset."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import nn

from inflate3d.contracts import DatasetCard
from inflate3d.errors import InputError, unknown_name
from inflate3d.models import BackboneConfig
from inflate3d.models.publication.fetch import check_directory, published_folder
from inflate3d.models.publication.load import head_tensors
from inflate3d.models.publication.schema import read_published_config
from inflate3d.nn import LinearHead, UNetDecoder

_log = logging.getLogger(__name__)
_TYPES: dict[str, tuple[type[nn.Module], str]] = {"linear": (LinearHead, "linear."), "unet": (UNetDecoder, "classify.")}
"""config.json's name of a head's type: the module, and the prefix of the layer that knows the classes."""


def take_published_heads(
    heads: Mapping[str, nn.Module],
    wanted: Mapping[str, str],
    backbone: BackboneConfig,
    cards: Mapping[str, DatasetCard],
) -> None:
    """Load published heads into those of these datasets. wanted: dataset to the name of a head of the publication.

    The last layer is taken where the classes have the same names in the same order, and stays fresh otherwise; the log
    tells which. InputError for an unknown name, a head of another kind or shape, or a backbone that is not published.
    """
    for dataset, published in wanted.items():
        where = f"model.start_heads.{dataset}"
        if dataset not in heads:
            raise unknown_name("dataset", dataset, heads, where="model.start_heads")
        folder = published_folder(backbone.name) if backbone.pretrained else None
        if folder is None:
            raise InputError(
                f"{where}: heads come with published weights, and model.backbone is {backbone.name!r} with pretrained "
                f"{str(backbone.pretrained).lower()}; name a publication and pretrained true, or leave start_heads out"
            )
        described = read_published_config(folder).get("heads", {})
        if published not in described:
            raise unknown_name("head", published, described, where=f"{where}: {backbone.name}")
        kind, last = _TYPES[described[published]["type"]]
        head, classes = heads[dataset], tuple(described[published]["classes"])
        if type(head) is not kind:
            raise InputError(f"{where}: {published!r} is a {kind.__name__}, the task's head a {type(head).__name__}")
        state = head_tensors(folder, published, check_directory(folder))
        own, same = head.state_dict(), classes == tuple(cards[dataset].classes)
        taken = {key: value for key, value in state.items() if same or not key.startswith(last)}
        odd = [key for key, value in taken.items() if key not in own or own[key].shape != value.shape]
        if odd or not taken:
            reason = f"{odd[0]} has another shape" if odd else f"its classes are others ({', '.join(classes[:4])})"
            raise InputError(f"{where}: nothing can be taken of {published!r}: {reason}; leave it out")
        head.load_state_dict({**own, **taken})
        rest = "" if same else f"; its classes are others ({', '.join(classes[:4])}), so the last layer is fresh"
        _log.warning("%s: begins as %r of %s%s", where, published, backbone.name, rest)
