"""Predictions as one sees them: masks on slices, others above the planes that their medium shows."""

# C channel, D H W voxels along z y x, K class.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from inflate3d.contracts import AbstractTarget, DatasetCard, Exhibit, medium_of
from inflate3d.evaluation.pictures.pixels import tint
from inflate3d.evaluation.pictures.planes import COLUMNS, caption, show_plane
from inflate3d.nn.metrics import volume_dice
from inflate3d.sample import Batch
from inflate3d.training.datamodule import DataModule
from inflate3d.training.module import MultiTaskModule

_TITLE = 0.3  # inches above a row


@dataclass
class Picture:
    """One sample with one task's answer, on the CPU: image_CDHW, target's value and what the answer says of it."""

    name: str
    key: str
    card: DatasetCard
    target: AbstractTarget
    image_CDHW: np.ndarray
    value: Tensor
    answer: Tensor
    spacing_mm: tuple[float, float, float]


@dataclass
class Shown:
    """One sample of a task without a target, by what the task shows of it."""

    name: str
    key: str
    card: DatasetCard
    exhibit: Exhibit
    spacing_mm: tuple[float, float, float]


def plot_samples(module: MultiTaskModule, data: DataModule, path: str | Path, *, per_dataset: int = 3) -> Path:
    """Draw predictions on validation samples of every dataset into one picture; return its path."""
    pictures = list(predict_some(module, data, per_dataset=per_dataset))
    height = 2.1 * max(len(pictures), 1) + _TITLE
    # The first row's title, too, is a text that the layout leaves out.
    figure = Figure(figsize=(11, height), layout=ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - _TITLE / height)))
    draw_pictures(figure, pictures)
    figure.savefig(path, dpi=110)
    return Path(path)


@torch.no_grad()
def predict_some(module: MultiTaskModule, data: DataModule, *, per_dataset: int = 3) -> Iterator[Picture | Shown]:
    """Yield each task's answers for a few validation samples of every dataset, evenly spaced over the split."""
    for config in data.datasets.values():
        config.max_eval_samples = min(config.max_eval_samples or per_dataset, per_dataset)
        config.eval_batch_size = 1
    module.eval()
    for batch in data.val_dataloader():
        names = module.tasks_of[batch.dataset]
        for name in names:
            title = batch.dataset if len(names) == 1 else f"{batch.dataset} {name}"
            yield from _of_task(module, batch.to(module.device), name, title)


def _of_task(module: MultiTaskModule, batch: Batch, name: str, title: str) -> Iterator[Picture | Shown]:
    """Yield one task's pictures of a batch."""
    task, card = module.tasks[name], module.cards[batch.dataset]
    spacings: list[Any] = [tuple(spacing_mm) for spacing_mm in batch.spacing_mm.tolist()]
    values = task.value(batch)
    if values is None:
        for key, exhibit, spacing_mm in zip(batch.keys, module.show(batch, name), spacings, strict=True):
            yield Shown(title, key, card, exhibit, spacing_mm)
        return
    answer, values = module.predict(batch, name).tensor.cpu(), values.cpu()
    for i, key in enumerate(batch.keys):
        target = task.target_of(batch.dataset)
        yield Picture(title, key, card, target, batch.image[i].cpu().numpy(), values[i], answer[i], spacings[i])


def draw_pictures(figure: Any, pictures: Sequence[Picture | Shown]) -> None:
    """Draw one row an answer into a figure or subfigure."""
    if not pictures:
        return
    rows = figure.subplots(len(pictures), COLUMNS, squeeze=False, gridspec_kw={"hspace": 0.12})
    for axes, picture in zip(rows, pictures, strict=True):
        for one in axes:
            one.axis("off")
        if isinstance(picture, Shown):
            _draw_exhibit(list(axes), picture)
        else:
            (_draw_masks if picture.target.per_voxel else _draw_image)(list(axes), picture)


def _draw_exhibit(axes: list[Axes], shown: Shown) -> None:
    """The panels of each plane side by side; panels of one size are cut alike, others by their own marks."""
    panels = shown.exhibit.panels[: len(axes)]
    count = len(axes) // max(len(panels), 1)
    images = [panel.image_CDHW.float().cpu().numpy() for panel in panels]
    marks = [None if panel.marks_DHW is None else panel.marks_DHW.cpu().numpy() for panel in panels]
    planes = [
        medium_of(shown.card).planes(image, count, spacing_mm=shown.spacing_mm, mask_DHW=mask, maxima=False)
        for image, mask in zip(images, marks, strict=True)
    ]
    cells = [(p, n) for n in range(count) for p in range(len(panels)) if n < len(planes[p])]
    for one, (p, n) in zip(axes, cells, strict=False):
        plane, like = planes[p][n], images[0] if shown.exhibit.one_scale else images[p]
        show_plane(one, plane.of(images[p]), plane.aspect, like=plane.of(like))
        if (mask := marks[p]) is not None:
            one.imshow(tint(plane.of_mask(mask)), origin="lower", aspect=plane.aspect)
        caption(one, f"{panels[p].caption}\n{plane.caption}")
    _title(axes[0], shown, shown.exhibit.said)


def _draw_image(axes: list[Axes], picture: Picture) -> None:
    """The image as its medium shows it; what is known and what was said stands above."""
    _draw_planes(axes, picture)
    _title(axes[0], picture, _said(picture))


def _draw_planes(axes: list[Axes], picture: Picture) -> None:
    planes = medium_of(picture.card).planes(picture.image_CDHW, len(axes), spacing_mm=picture.spacing_mm)
    for one, plane in zip(axes, planes, strict=False):
        show_plane(one, plane.of(picture.image_CDHW), plane.aspect)
        caption(one, plane.caption)


def _draw_masks(axes: list[Axes], picture: Picture) -> None:
    """Image, truth and prediction, in the slices that hold most of the truth."""
    truth, guess = picture.value.numpy(), picture.target.label_map(picture.answer[None])[0].numpy()
    if not (truth.any() or guess.any()):
        _draw_planes(axes, picture)
        _title(axes[0], picture, f"{picture.target.names[0]} alone, in truth and prediction")
        return
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
    dice, spoke = volume_dice(torch.from_numpy(guess), torch.from_numpy(truth), picture.target)
    rows = zip(picture.target.scored, dice.tolist(), spoke.tolist(), strict=True)
    return "Dice " + ", ".join([f"{name} {value:.2f}" for name, value, is_there in rows if is_there][:6])


def _title(axes: Axes, picture: Picture | Shown, text: str) -> None:
    # As a text that the layout leaves out: it runs on over the next columns.
    title = f"{picture.name} {picture.key}" + (f": {text}" if text else "")
    axes.text(0.0, 1.03, title, transform=axes.transAxes, fontsize=8, va="bottom").set_in_layout(False)
