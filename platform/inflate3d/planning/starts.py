"""The published head that a fine-tuning may begin from: one for the same kind of target and the same class names."""

from __future__ import annotations

from inflate3d.contracts import AbstractTarget
from inflate3d.models.publication.fetch import published_folder
from inflate3d.models.publication.heads import target_of
from inflate3d.models.publication.schema import read_published_config


def fitting_head(model: str, target: AbstractTarget) -> str | None:
    """Return the name of the first head of a publication whose target is of this type and answers alike; else None."""
    folder = published_folder(model)
    heads = {} if folder is None else read_published_config(folder).get("heads", {})
    for name, entry in heads.items():
        theirs = target_of(entry)
        if type(theirs) is type(target) and theirs is not None and theirs.answers == target.answers != ():
            return str(name)
    return None
