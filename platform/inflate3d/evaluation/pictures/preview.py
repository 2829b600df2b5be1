"""A few cases as one sees them: slices with their masks, frames with their class, of raw files or of shards."""

# C channel, D H W voxels along z y x.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from inflate3d.contracts import DatasetCard, medium_of
from inflate3d.data.samples.record import stored_value
from inflate3d.data.shards.glimpse import Glimpse, StoredCase
from inflate3d.evaluation.pictures.figures import save_figure
from inflate3d.evaluation.pictures.pixels import tint
from inflate3d.evaluation.pictures.planes import COLUMNS, caption, show_plane


def draw_preview(glimpses: Sequence[Glimpse], path: str | Path) -> Path:
    """Draw the cases of each set, a row each, into one PNG; return its path."""
    cases = [(glimpse.card, case) for glimpse in glimpses for case in glimpse.cases()]
    figure = Figure(figsize=(11, 2.4 * len(cases)), layout=ConstrainedLayoutEngine(h_pad=0.2))
    rows = figure.subplots(len(cases), COLUMNS, squeeze=False)
    for axes, (card, case) in zip(rows, cases, strict=True):
        for one in axes:
            one.axis("off")
        _draw_case(list(axes), case, card)
    return save_figure(figure, Path(path))


def _draw_case(axes: Sequence[Axes], case: StoredCase, card: DatasetCard) -> None:
    """Draw the image, and beside each slice the same with its mask where that shows anything; above what is known."""
    medium, raw = medium_of(card), case.raw
    image_CDHW = np.asarray(medium.raw_image(raw, len(axes)))
    masks = [raw.targets.get(name) for name, target in card.targets.items() if target.per_voxel and target.names]
    mask = None if not masks or masks[0] is None else np.asarray(masks[0])
    each = 2 if mask is not None and mask.any() else 1
    spacing_mm = raw.spacing_mm or (1.0, 1.0, 1.0)
    planes = medium.planes(image_CDHW, len(axes) // each, spacing_mm=spacing_mm, mask_DHW=mask)
    is_whole = image_CDHW.shape[1] == (case.record.get("shape") or image_CDHW.shape)[1]
    for i, plane in enumerate(planes):
        for one in axes[each * i : each * (i + 1)]:
            show_plane(one, plane.of(image_CDHW), plane.aspect)
            # Of a video a few frames were decoded, whose numbers are their own.
            caption(one, plane.caption if is_whole else f"{i + 1} of {len(planes)}, evenly spaced")
        if each == 2 and mask is not None:
            axes[2 * i + 1].imshow(tint(plane.of_mask(mask)), origin="lower", aspect=plane.aspect)
    # As a text that the layout leaves out: it runs on over the next columns.
    title = "   ".join([f"{card.name} {case.split} {case.key}", *_known(card, case), _size(case, image_CDHW)])
    axes[0].text(0.0, 1.03, title, transform=axes[0].transAxes, fontsize=8, va="bottom").set_in_layout(False)


def _known(card: DatasetCard, case: StoredCase) -> list[str]:
    targets = ((name, target) for name, target in card.targets.items() if not target.per_voxel)
    return [f"{name}: {target.show(target.tensor(stored_value(case.record, name)))}" for name, target in targets]


def _size(case: StoredCase, image_CDHW: Any) -> str:
    spacing = " x ".join(f"{s:.4g}" for s in case.record.get("spacing_mm") or (1.0, 1.0, 1.0))
    shape = " x ".join(str(n) for n in case.record.get("shape") or image_CDHW.shape)
    return f"(C, D, H, W) {shape} {image_CDHW.dtype}, spacing {spacing}"
