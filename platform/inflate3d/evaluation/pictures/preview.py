"""Raw cases as one sees them before any shard is built: slices with their masks, frames with their class."""

# C channel, D H W voxels along z y x.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from inflate3d.contracts import AbstractDataset, Case, DatasetCard, RawSample, medium_of
from inflate3d.errors import InputError
from inflate3d.evaluation.pictures.pixels import tint
from inflate3d.evaluation.pictures.samples import COLUMNS, caption, show_plane


def preview_dataset(dataset: AbstractDataset, path: str | Path, *, num_samples: int = 4) -> Path:
    """Draw a few cases, evenly spaced over the list; return the picture's path. InputError if there are none."""
    cases = dataset.cases()
    if not cases:
        raise InputError(f"{dataset.card.name}: there are no cases to draw")
    chosen = [cases[i] for i in np.linspace(0, len(cases) - 1, min(num_samples, len(cases))).round().astype(int)]
    figure = Figure(figsize=(11, 2.4 * len(chosen)), layout=ConstrainedLayoutEngine(h_pad=0.2))
    rows = figure.subplots(len(chosen), COLUMNS, squeeze=False)
    for axes, case in zip(rows, chosen, strict=True):
        for one in axes:
            one.axis("off")
        _draw_case(list(axes), case, dataset.read(case), dataset.card)
    figure.savefig(path, dpi=110)
    return Path(path)


def _draw_case(axes: Sequence[Axes], case: Case, sample: RawSample, card: DatasetCard) -> None:
    """Draw the image, beside it with its mask where there is one; the title says what else is known."""
    medium = medium_of(card)
    image_CDHW = medium.raw_image(sample, len(axes))
    masks = [sample.targets[name] for name, target in card.targets.items() if target.per_voxel and target.names]
    spacing_mm = sample.spacing_mm or (1.0, 1.0, 1.0)
    each = 2 if masks else 1
    planes = medium.planes(image_CDHW, len(axes) // each, spacing_mm=spacing_mm, mask_DHW=masks[0] if masks else None)
    for i, plane in enumerate(planes):
        for one in axes[each * i : each * (i + 1)]:
            show_plane(one, plane.of(image_CDHW), plane.aspect)
            caption(one, plane.caption)
        if masks and plane.index is not None:
            axes[each * i + 1].imshow(tint(plane.of_mask(masks[0])), origin="lower", aspect=plane.aspect)
    known = (f"{n}: {_shown(card, n, v)}" for n, v in sample.targets.items() if not card.targets[n].per_voxel)
    size = f"(C, D, H, W) {image_CDHW.shape} {image_CDHW.dtype}, spacing {tuple(round(s, 3) for s in spacing_mm)}"
    # As a text that the layout leaves out: it runs on over the next columns.
    title = "   ".join([f"{case.split} {case.key}", *known, size])
    axes[0].text(0.0, 1.03, title, transform=axes[0].transAxes, fontsize=8, va="bottom").set_in_layout(False)


def _shown(card: DatasetCard, name: str, value: Any) -> str:
    target = card.targets[name]
    return target.show(target.tensor(None if value is None else target.encode(value)))
