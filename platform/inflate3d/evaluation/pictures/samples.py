"""Predictions as one sees them: masks on slices, others above the planes that their medium shows."""

# C channel, D H W voxels along z y x, K class.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from inflate3d.contracts import AbstractTarget, DatasetCard, medium_of
from inflate3d.evaluation.pictures.pixels import stretch, tint
from inflate3d.training.datamodule import DataModule
from inflate3d.training.module import MultiTaskModule

COLUMNS = 6


@dataclass
class Picture:
    """One sample with one task's answer, on the CPU: image_CDHW, target's value and what the answer says of it.

    target None: a task without one, whose answer is not drawn.
    """

    name: str
    key: str
    card: DatasetCard
    target: AbstractTarget | None
    image_CDHW: np.ndarray
    value: Tensor | None
    answer: Tensor
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
    """Yield each task's answers for a few validation samples of every dataset, evenly spaced over the split."""
    for config in data.datasets.values():
        config.max_eval_samples = min(config.max_eval_samples or per_dataset, per_dataset)
        config.eval_batch_size = 1
    module.eval()
    for batch in data.val_dataloader():
        names = module.tasks_of[batch.dataset]
        for name in names:
            answer = module.predict(batch.to(module.device), name).tensor.cpu()
            task = module.tasks[name]
            value = task.value(batch)
            for i, key in enumerate(batch.keys):
                yield Picture(
                    name=batch.dataset if len(names) == 1 else f"{batch.dataset} {name}",
                    key=key,
                    card=module.cards[batch.dataset],
                    target=None if value is None else task.target_of(batch.dataset),
                    image_CDHW=batch.image[i].numpy(),
                    value=None if value is None else value[i],
                    answer=answer[i],
                    spacing_mm=tuple(batch.spacing_mm[i].tolist()),
                )


def draw_pictures(figure: Any, pictures: list[Picture]) -> None:
    """Draw one row an answer into a figure or subfigure."""
    if not pictures:
        return
    rows = figure.subplots(len(pictures), COLUMNS, squeeze=False, gridspec_kw={"hspace": 0.12})
    for axes, picture in zip(rows, pictures, strict=True):
        for one in axes:
            one.axis("off")
        per_voxel = picture.target is not None and picture.target.per_voxel
        (_draw_masks if per_voxel else _draw_image)(list(axes), picture)


def _draw_image(axes: list[Axes], picture: Picture) -> None:
    """The image as its medium shows it; what is known and what was said stands above."""
    planes = medium_of(picture.card).planes(picture.image_CDHW, len(axes), spacing_mm=picture.spacing_mm)
    for one, plane in zip(axes, planes, strict=False):
        show_plane(one, plane.of(picture.image_CDHW), plane.aspect)
        caption(one, plane.caption)
    _title(axes[0], picture, _said(picture))


def _draw_masks(axes: list[Axes], picture: Picture) -> None:
    """Image, truth and prediction, in the slices that hold most of the truth."""
    assert picture.value is not None
    truth, guess = picture.value.numpy(), picture.answer.argmax(dim=0).numpy()
    medium, shown = medium_of(picture.card), (None, truth, guess)
    planes = medium.planes(
        picture.image_CDHW,
        len(axes) // len(shown),
        spacing_mm=picture.spacing_mm,
        mask_DHW=truth if truth.any() else guess,
    )
    columns = [(plane, mask, name) for plane in planes for mask, name in zip(shown, _SHOWN, strict=True)]
    for one, (plane, mask, name) in zip(axes, columns, strict=False):
        show_plane(one, plane.of(picture.image_CDHW), plane.aspect)
        if mask is not None and plane.index is not None:
            one.imshow(tint(plane.of_mask(mask)), origin="lower", aspect=plane.aspect)
        caption(one, f"{name}, {plane.caption}")
    _title(axes[0], picture, _dice(picture, truth, guess))


_SHOWN = ("image", "truth", "prediction")


def _said(picture: Picture, count: int = 3) -> str:
    """The truth, and what was said: the likeliest of exclusive classes, the labels over one half, or the number."""
    target, answer = picture.target, picture.answer
    if target is None or picture.value is None:
        return "no target"
    truth = f"is {target.show(picture.value)}, said "
    if not target.names:
        return truth + target.show(answer)
    best = answer.argsort(descending=True)[:count].tolist()
    if not target.exclusive:
        best = [k for k in best if answer[k] > 0.5]
    told = ", ".join(f"{target.names[k]} {answer[k]:.2f}" for k in best) or "none"
    if not target.exclusive or int(picture.value) < 0:
        return truth + told
    return f"{truth}{told}: {'right' if best[0] == int(picture.value) else 'WRONG'}"


def _dice(picture: Picture, truth: np.ndarray, guess: np.ndarray) -> str:
    assert picture.target is not None
    found = []
    for k, name in enumerate(picture.target.names[1:], start=1):
        if k in picture.target.unannotated:
            continue
        size = (truth == k).sum() + (guess == k).sum()
        if size:
            found.append(f"{name} {2 * ((truth == k) & (guess == k)).sum() / size:.2f}")
    return "Dice " + ", ".join(found[:6])


def show_plane(axes: Axes, plane: np.ndarray, aspect: float = 1.0) -> None:
    """Show a frame (C, H, W) or a plane of a volume, its intensities stretched."""
    scaled = stretch(plane)
    if plane.ndim == 3:  # (C, H, W) frames stand upright; rows of a volume grow upwards
        axes.imshow(scaled.transpose(1, 2, 0))
    else:
        axes.imshow(scaled, cmap="gray", origin="lower", aspect=aspect)


def _title(axes: Axes, picture: Picture, text: str) -> None:
    # As a text that the layout leaves out: it runs on over the next columns.
    title = f"{picture.name} {picture.key}: {text}"
    axes.text(0.0, 1.03, title, transform=axes.transAxes, fontsize=8, va="bottom").set_in_layout(False)


def caption(axes: Axes, text: str) -> None:
    """Write a line below a plane."""
    axes.text(0.5, -0.02, text, transform=axes.transAxes, fontsize=6, ha="center", va="top", color="dimgray")
