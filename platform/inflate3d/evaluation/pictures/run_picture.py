"""One picture of a run: its curves above, its predictions on held-out samples below."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure

from inflate3d.evaluation.pictures import PICTURE
from inflate3d.evaluation.pictures.curves import draw_curves, run_rows
from inflate3d.evaluation.pictures.samples import draw_pictures, predict_some
from inflate3d.training.run.saved import load_data, load_module


def draw_run(run_folder: str | Path, *, which: str = "best", per_dataset: int = 3) -> Path:
    """Draw curves and the predictions of a checkpoint on validation samples; return the picture's path.

    The picture is <run folder>/pictures.png. Needs the run's shards where its config.yaml says.
    """
    rows = run_rows(run_folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = load_module(run_folder, which).to(device)
    pictures = list(predict_some(module, load_data(run_folder, num_workers=0), per_dataset=per_dataset))
    heights = [3.4, 2.0 * max(len(pictures), 0.5)]
    figure = Figure(figsize=(11, sum(heights)), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    draw_curves(above, rows)
    draw_pictures(below, pictures)
    path = Path(run_folder) / PICTURE
    figure.savefig(path, dpi=110)
    return path
