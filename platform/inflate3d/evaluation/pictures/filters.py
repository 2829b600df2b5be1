"""The first convolution's filters over time, before and after training: Fig. 4 of the I3D paper (arXiv:1705.07750)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from inflate3d.errors import InputError
from inflate3d.evaluation.pictures import FILTERS
from inflate3d.evaluation.pictures.figures import save_figure
from inflate3d.models import Backbone, BackboneConfig, create_model
from inflate3d.models.filters import filters_of, first_filters, slice_grids
from inflate3d.models.publication.fetch import published_folder
from inflate3d.models.publication.layout import CONFIG, PREFIX
from inflate3d.models.publication.schema import read_published_config
from inflate3d.models.spec import NetSpec
from inflate3d.training.run.folder import CONFIG as RUN_CONFIG
from inflate3d.training.run.folder import read_run_config
from inflate3d.training.run.saved import choose_checkpoint, load_module

BEFORE = "before: inflated"


@dataclass(frozen=True)
class FilterRow:
    """One row of the picture. filters: (O, I, D, H, W)."""

    title: str
    filters: np.ndarray


def plot_filters(
    model: str,
    path: str | Path | None = None,
    *,
    checkpoint: str = "best",
    weights_2d: str | None = None,
    inflation: str = "center",
    plan: Any = "auto",
) -> tuple[Path, str | None]:
    """Draw the first filters of a run, of published weights or of an inflated 2D net; return the picture's path.

    A run and published weights have two rows for each stem, before and after training, each normalised by itself;
    slices stand side by side. The second value says why the rows before training are missing, if they are. weights_2d:
    a file of the 2D weights, where they are not to be fetched. inflation and plan: for a 2D name.
    """
    rows, missing = filter_rows(model, checkpoint, weights_2d, inflation=inflation, plan=plan)
    if not rows:
        raise InputError(f"{model}: its first convolution has no filters along D to draw (2D, or kernels of 1 or 2)")
    title = Path(model).name if Path(model).is_dir() else model
    return save_figure(draw_rows(rows, title=title), _place(model, path), dpi=130), missing


def filter_rows(
    model: str, checkpoint: str = "best", weights_2d: str | None = None, **inflate: Any
) -> tuple[list[FilterRow], str | None]:
    """Return the rows of the picture, and why those before training are missing, if they are."""
    folder, overlay = Path(model), _overlay(weights_2d)
    if folder.is_dir() and not (folder / CONFIG).is_file():
        return _rows_of_run(folder, checkpoint, overlay)
    if folder.is_dir() and not (folder / RUN_CONFIG).is_file():
        model = f"{PREFIX}{folder}"
    if (found := published_folder(model)) is not None:
        return _rows_of_published(found, overlay)
    net = create_model(model, True, num_classes=0, **inflate, **overlay)
    return list(_rows({"": net}, "inflated")), None


def draw_rows(rows: list[FilterRow], *, title: str) -> Figure:
    """Return the figure: one row a stem and state, one column a slice along D."""
    grids = [slice_grids(row.filters) for row in rows]
    columns = max(len(grid) for grid in grids)
    width = max(2.4 * columns, 7.0)
    heights = [width / columns * grid.shape[1] / grid.shape[2] + 0.3 for grid in grids]
    figure = Figure(figsize=(width, sum(heights) + 0.5), layout="constrained", facecolor="white")
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    figure.suptitle(f"first convolution of {title}: {len(rows[0].filters)} filters, slices along D", fontsize=10)
    for row, grid, line in zip(rows, grids, axes, strict=True):
        for cell in line:
            cell.set_axis_off()
        for index, picture in enumerate(grid):
            offset = index - (len(grid) - 1) // 2
            largest = np.abs(row.filters[:, :, index]).max()
            where = f"D {offset:+d}: up to {largest:.2g}" if offset else f"D 0: up to {largest:.2g}"
            line[index].imshow(picture, interpolation="nearest")
            line[index].set_title(f"{row.title}, {where}" if index == 0 else where, fontsize=7, loc="left")
    return figure


def _rows(stems: Mapping[str, nn.Module], state: str) -> Iterator[FilterRow]:
    for name, net in stems.items():
        filters = first_filters(net) if not isinstance(net, nn.Conv2d) else filters_of(net)
        if filters is not None:
            yield FilterRow(f"{name} stem, {state}" if name else state, filters)


def _rows_of_run(folder: Path, which: str, overlay: Mapping[str, Any]) -> tuple[list[FilterRow], str | None]:
    config, checkpoint = read_run_config(folder), choose_checkpoint(folder, which)
    trained = load_module(folder, str(checkpoint.path))
    after = list(_rows(_stems(trained.backbone), f"after {checkpoint.step} steps"))
    spec = BackboneConfig(**config["model"]["backbone"])
    if not spec.pretrained:
        return after, "the run began from random weights"
    kwargs = {**spec.timm_kwargs, **overlay}
    try:
        fresh = Backbone(replace(spec, inflation=trained.backbone.config.inflation, timm_kwargs=kwargs))
    except InputError as fault:
        return after, str(fault)
    fresh.setup_domains(trained.cards)
    return _paired(list(_rows(_stems(fresh), BEFORE)), after), None


def _rows_of_published(folder: Path, overlay: Mapping[str, Any]) -> tuple[list[FilterRow], str | None]:
    config = read_published_config(folder)
    stems = list(dict.fromkeys(config["norm_domains"].values())) or [""]
    domains = {stem: next((d for d, s in config["norm_domains"].items() if s == stem), None) for stem in stems}
    nets = {s: create_model(f"{PREFIX}{folder}", True, num_classes=0, norm_domain=d) for s, d in domains.items()}
    steps = config.get("training", {}).get("steps")
    after = list(_rows(nets, f"after {steps} steps" if steps else "published"))
    if config.get("source_weights") is None:
        return after, "the weights began from random ones, or from those of a model that was not named"
    own = NetSpec.from_dict(config["net"])
    try:
        before = {
            stem: create_model(
                own.name,
                True,
                inflation=own.inflation,
                in_chans=trained.net_spec.in_chans,  # type: ignore[union-attr, arg-type]
                num_classes=0,
                **{**own.timm_kwargs, **overlay},
            )
            for stem, trained in nets.items()
        }
    except InputError as fault:
        return after, str(fault)
    return _paired(list(_rows(before, BEFORE)), after), None


def _paired(before: list[FilterRow], after: list[FilterRow]) -> list[FilterRow]:
    """Each stem's row before training above that after it."""
    return [row for pair in zip(before, after, strict=True) for row in pair]


def _stems(backbone: Backbone) -> dict[str, nn.Module]:
    switch = backbone.stem_switch
    return {"": backbone.net} if switch is None else dict(switch.items())


def _overlay(weights_2d: str | None) -> dict[str, Any]:
    if weights_2d is None:
        return {}
    if not Path(weights_2d).is_file():
        raise InputError(f"--weights_2d {weights_2d}: no such file; name the safetensors file of the 2D weights")
    return {"pretrained_cfg_overlay": {"file": weights_2d}}


def _place(model: str, path: str | Path | None) -> Path:
    if path is not None:
        return Path(path)
    if Path(model).is_dir() and (Path(model) / RUN_CONFIG).is_file():
        return Path(model) / FILTERS
    return Path(f"filters-{''.join(c if c.isalnum() or c in '._-' else '-' for c in model)[-80:]}.png")
