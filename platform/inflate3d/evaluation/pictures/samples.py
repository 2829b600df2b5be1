"""Predictions as one sees them: masks on slices, clips as strips of frames, volumes with their likely classes."""

# C channel, D H W voxels along z y x, K class.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inflate3d.contracts import DatasetCard
from inflate3d.training.datamodule import DataModule
from inflate3d.training.module import MultiTaskModule

COLUMNS = 6


@dataclass
class Picture:
    """One predicted sample, on the CPU: image_CDHW, the target, and probabilities (K,) or (K, D, H, W)."""

    dataset: str
    key: str
    card: DatasetCard
    image_CDHW: np.ndarray
    target: np.ndarray
    probabilities: np.ndarray
    spacing_mm: tuple[float, float, float]


def plot_samples(module: MultiTaskModule, data: DataModule, path: str | Path, *, per_dataset: int = 3) -> Path:
    """Draw predictions on validation samples of every dataset into one picture; return its path."""
    pictures = list(predict_some(module, data, per_dataset=per_dataset))
    figure = Figure(figsize=(11, 2.1 * max(len(pictures), 1)), layout="constrained")
    draw_pictures(figure, pictures)
    figure.savefig(path, dpi=110)
    return Path(path)


@torch.no_grad()
def predict_some(module: MultiTaskModule, data: DataModule, *, per_dataset: int = 3) -> Iterator[Picture]:
    """Yield predictions on a few validation samples of every dataset, evenly spaced over the split."""
    for config in data.datasets.values():
        config.max_eval_samples = min(config.max_eval_samples or per_dataset, per_dataset)
        config.eval_batch_size = 1
    module.eval()
    for batch in data.val_dataloader():
        answer = module.predict(batch.to(module.device)).probabilities.cpu()
        for i, key in enumerate(batch.keys):
            yield Picture(
                dataset=batch.dataset,
                key=key,
                card=module.cards[batch.dataset],
                image_CDHW=batch.image[i].numpy(),
                target=batch.target[i].numpy(),
                probabilities=answer[i].numpy(),
                spacing_mm=tuple(batch.spacing_mm[i].tolist()),
            )


def draw_pictures(figure: Any, pictures: list[Picture]) -> None:
    """Draw one row a sample into a figure or subfigure."""
    if not pictures:
        return
    rows = figure.subplots(len(pictures), COLUMNS, squeeze=False, gridspec_kw={"hspace": 0.12})
    for axes, picture in zip(rows, pictures, strict=True):
        for one in axes:
            one.axis("off")
        _DRAW[picture.card.kind](list(axes), picture)


def _draw_clip(axes: list[Axes], picture: Picture) -> None:
    """Frames, evenly spaced."""
    depth = picture.image_CDHW.shape[1]
    for one, t in zip(axes, np.linspace(0, depth - 1, COLUMNS).round().astype(int), strict=True):
        show_plane(one, grey_or_rgb(picture.image_CDHW)[:, t])
        caption(one, f"frame {t}")
    _title(axes[0], picture, _likely(picture))


def _draw_volume(axes: list[Axes], picture: Picture) -> None:
    """The middle slice and the brightest-voxel projection along each axis."""
    image_DHW = picture.image_CDHW[0]
    for i, name in enumerate("DHW"):
        show_plane(axes[2 * i], image_DHW.take(image_DHW.shape[i] // 2, axis=i), _aspect(picture, i))
        caption(axes[2 * i], f"middle of {name}")
        show_plane(axes[2 * i + 1], image_DHW.max(axis=i), _aspect(picture, i))
        caption(axes[2 * i + 1], f"maximum over {name}")
    _title(axes[0], picture, _likely(picture))


def _draw_masks(axes: list[Axes], picture: Picture) -> None:
    """Image, truth and prediction, in the slices along D and along H that hold most of the truth."""
    image_DHW, truth, guess = picture.image_CDHW[0], picture.target, picture.probabilities.argmax(axis=0)
    for first, axis in ((0, 0), (3, 1)):
        others = tuple(i for i in range(3) if i != axis)
        index = int((truth > 0).sum(axis=others).argmax())
        plane = image_DHW.take(index, axis=axis)
        for one, mask, name in zip(axes[first:], (None, truth, guess), ("image", "truth", "prediction"), strict=False):
            show_plane(one, plane, _aspect(picture, axis))
            if mask is not None:
                one.imshow(tint(mask.take(index, axis=axis)), origin="lower", aspect=_aspect(picture, axis))
            caption(one, f"{name}, {'DHW'[axis]} = {index}")
    _title(axes[0], picture, _dice(picture, truth, guess))


_DRAW = {
    "video_classification": _draw_clip,
    "volume_classification": _draw_volume,
    "volume_segmentation": _draw_masks,
}


def _likely(picture: Picture, count: int = 3) -> str:
    classes, p = picture.card.classes, picture.probabilities
    best = np.argsort(-p)[:count]
    right = "right" if best[0] == int(picture.target) else "WRONG"
    return (
        f"is {classes[int(picture.target)]}, said " + ", ".join(f"{classes[k]} {p[k]:.2f}" for k in best) + f": {right}"
    )


def _dice(picture: Picture, truth: np.ndarray, guess: np.ndarray) -> str:
    found = []
    for k, name in enumerate(picture.card.classes[1:], start=1):
        size = (truth == k).sum() + (guess == k).sum()
        if size:
            found.append(f"{name} {2 * ((truth == k) & (guess == k)).sum() / size:.2f}")
    return "Dice " + ", ".join(found[:6])


def show_plane(axes: Axes, plane: np.ndarray, aspect: float = 1.0) -> None:
    """Show a frame (C, H, W) or a plane of a volume, its intensities stretched."""
    low, high = np.percentile(plane, [0.5, 99.5])
    scaled = np.clip((plane - low) / max(high - low, 1e-6), 0, 1)
    if plane.ndim == 3:  # (C, H, W) frames stand upright; rows of a volume grow upwards
        axes.imshow(scaled.transpose(1, 2, 0))
    else:
        axes.imshow(scaled, cmap="gray", origin="lower", aspect=aspect)


def tint(labels: np.ndarray) -> np.ndarray:
    """Return (H, W, 4): a colour a class, the background transparent."""
    colours = np.array([(0, 0, 0, 0), *[(*colormaps["tab10"](k % 10)[:3], 0.55) for k in range(1, labels.max() + 1)]])
    return colours[labels]


def grey_or_rgb(image_CDHW: np.ndarray) -> np.ndarray:
    """Return three channels to look at."""
    return image_CDHW[:3] if image_CDHW.shape[0] >= 3 else np.repeat(image_CDHW[:1], 3, axis=0)


def _aspect(picture: Picture, axis: int) -> float:
    """Return how much taller than wide a voxel is in the plane across `axis`."""
    height, width = (s for i, s in enumerate(picture.spacing_mm) if i != axis)
    return height / width if width > 0 and height > 0 else 1.0


def _title(axes: Axes, picture: Picture, text: str) -> None:
    # As a text that the layout leaves out: it runs on over the next columns.
    title = f"{picture.dataset} {picture.key}: {text}"
    axes.text(0.0, 1.03, title, transform=axes.transAxes, fontsize=8, va="bottom").set_in_layout(False)


def caption(axes: Axes, text: str) -> None:
    """Write a line below a plane."""
    axes.text(0.5, -0.02, text, transform=axes.transAxes, fontsize=6, ha="center", va="top", color="dimgray")
