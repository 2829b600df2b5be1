"""Raw cases as one sees them before any shard is built: slices with their masks, frames with their class."""

# C channel, D H W voxels along z y x.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from inflate3d.contracts import AbstractDataset, Case, DatasetCard, RawSample
from inflate3d.data.samples.frames import decode_frames, probe_video
from inflate3d.errors import InputError
from inflate3d.evaluation.pictures.samples import COLUMNS, caption, grey_or_rgb, show_plane, tint


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
    label = "" if sample.label is None else f": {card.classes[sample.label]}"
    if sample.video is not None:
        _draw_frames(axes, sample.video)
        size = f"{len(sample.video)} bytes"
    else:
        assert sample.image is not None, "a raw sample holds an image or a video"
        _draw_planes(axes, sample.image, sample.mask, sample.spacing_mm or (1.0, 1.0, 1.0))
        size = f"(C, D, H, W) {sample.image.shape} {sample.image.dtype}, spacing {sample.spacing_mm}"
    # As a text that the layout leaves out: it runs on over the next columns.
    title = f"{case.split} {case.key}{label}   {size}"
    axes[0].text(0.0, 1.03, title, transform=axes[0].transAxes, fontsize=8, va="bottom").set_in_layout(False)


def _draw_frames(axes: Sequence[Axes], video: bytes) -> None:
    indices = np.linspace(0, probe_video(video).num_frames - 1, COLUMNS).round().astype(int).tolist()
    for one, index, frame_HWC in zip(axes, indices, decode_frames(video, indices), strict=True):
        show_plane(one, frame_HWC.transpose(2, 0, 1))
        caption(one, f"frame {index}")


def _draw_planes(
    axes: Sequence[Axes], image_CDHW: np.ndarray, mask_DHW: np.ndarray | None, spacing_mm: tuple[float, float, float]
) -> None:
    """Along each axis: the plane that holds most of the mask (or the middle one), without and with it."""
    shown = grey_or_rgb(image_CDHW)[0]
    for axis, name in enumerate("DHW"):
        others = tuple(i for i in range(3) if i != axis)
        middle = shown.shape[axis] // 2
        index = middle if mask_DHW is None or not mask_DHW.any() else int((mask_DHW > 0).sum(axis=others).argmax())
        aspect = spacing_mm[others[0]] / spacing_mm[others[1]]
        for one in axes[2 * axis : 2 * axis + 2]:
            show_plane(one, shown.take(index, axis=axis), aspect)
            caption(one, f"{name} = {index}")
        if mask_DHW is not None:
            plane = mask_DHW.take(index, axis=axis)
            axes[2 * axis + 1].imshow(tint(plane), origin="lower", aspect=aspect)
