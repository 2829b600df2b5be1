"""What pages of sets have in common: the colours of masks, and how long a fact may be."""

from __future__ import annotations

from typing import Any

import numpy as np

from inflate3d.contracts import DatasetCard
from inflate3d.evaluation.pictures.pixels import OPACITY, tint

MOST_TEXT = 300
"""Letters of one fact; what is longer is cut."""


def mask_colours(card: DatasetCard) -> list[tuple[str, str]]:
    """Return (class, CSS colour) of the mask that is drawn."""
    targets = [t for t in card.targets.values() if t.per_voxel and t.names]
    names = targets[0].names if targets else ()
    rows: Any = tint(np.arange(len(names)))[1:, :3] if names else []
    return [
        (name, f"rgb({r:.0%} {g:.0%} {b:.0%} / {OPACITY})") for name, (r, g, b) in zip(names[1:], rows, strict=True)
    ]
