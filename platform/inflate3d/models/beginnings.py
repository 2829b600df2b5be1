"""Which of a publication's domains each dataset of a run begins from: its stem, and its running statistics."""

from __future__ import annotations

from collections.abc import Mapping

from inflate3d.contracts import DatasetCard
from inflate3d.models.publication.fetch import published_folder
from inflate3d.models.publication.index import is_published
from inflate3d.models.publication.schema import read_published_config


def beginnings(name: str, cards: Mapping[str, DatasetCard]) -> dict[str, str]:
    """Return the domain of the publication `name` that each dataset begins from, where it is not the net's own.

    The domain of the same name, else the first whose stem serves the dataset's modality; none of a 2D net.
    """
    if not is_published(name) or (folder := published_folder(name)) is None:
        return {}
    config = read_published_config(folder)
    stem_of: Mapping[str, str] = config["norm_domains"]
    found = {}
    for dataset, card in cards.items():
        alike = [dataset] if dataset in stem_of else [d for d, stem in stem_of.items() if stem == card.modality]
        if alike and alike[0] != config["input"].get("domain"):
            found[dataset] = alike[0]
    return found
