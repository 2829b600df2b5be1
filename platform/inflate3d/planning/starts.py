"""The published head that a fine-tuning may begin from: one that answers alike, else a decoder of other classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inflate3d.contracts import AbstractTarget
from inflate3d.heads.unet import UNetDecoder, default_channels
from inflate3d.models.publication.fetch import published_folder
from inflate3d.models.publication.heads import is_per_voxel, target_of
from inflate3d.models.publication.schema import read_published_config
from inflate3d.nn.heads import head_type
from inflate3d.planning.chosen import Chosen


def fitting_head(model: str, target: AbstractTarget) -> Chosen | None:
    """Return the head of a publication to begin from, with the reason; None where none helps.

    The first whose target is of this type and answers alike. For voxels, else the first decoder, of which all but the
    last layer is taken: that helps much where organs are alike, and harmed where they are not by nothing that was
    measured (docs/LOG.md, 2026-11-29). Decoders of another shape than a fresh one has do not fit.
    """
    folder = published_folder(model)
    found = {} if folder is None else read_published_config(folder).get("heads", {})
    heads = {str(name): entry for name, entry in found.items() if not is_per_voxel(entry) or _is_as_fresh(entry)}
    for name, entry in heads.items():
        theirs = target_of(entry)
        if type(theirs) is type(target) and theirs is not None and theirs.answers == target.answers != ():
            return Chosen(name, "published for the same classes")
    decoders = [name for name, entry in heads.items() if is_per_voxel(entry)]
    if target.per_voxel and decoders:
        return Chosen(decoders[0], "a published decoder of other classes; its last layer begins fresh")
    return None


def _is_as_fresh(entry: Mapping[str, Any]) -> bool:
    widths = entry["head"].get("channels", [])
    return head_type(entry["type"], where="heads") is UNetDecoder and widths == default_channels(len(widths))
