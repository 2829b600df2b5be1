"""A table before a run's first step: datasets, tasks, shares, samples, shapes, the net."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from inflate3d.cli.table import print_table
from inflate3d.errors import InputError


class RunSummary(Callback):
    """Prints the table once, before training."""

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print datasets, then the net and how long the run is."""
        rows = trainer.datamodule.rows()  # type: ignore[attr-defined]
        header = ("dataset", "task", "share", "batch", "sample", "train", "val", "test", "media")
        print_table(header, [_row(row) for row in rows])
        print(_net(pl_module))
        for warning in one_voxel_warnings(pl_module, rows):
            print(warning)
        start = f"from step {trainer.global_step} " if trainer.global_step else ""
        window = trainer.accumulate_grad_batches
        print(
            f"train {start}to step {trainer.max_steps}, {window} micro-batch{'es' * (window > 1)} per step", flush=True
        )


def one_voxel_warnings(module: Any, rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each dataset whose deepest map is one voxel: BatchNorm has one value per sample there.

    Its gradients explode there (docs/LOG.md, 2026-11-23). InputError if the batch, too, holds only one sample.
    """
    if module.backbone_config.norm not in ("per_domain", "shared"):
        return []
    reduction = module.backbone.feature_info.reduction_dhw()[-1]
    found = []
    for row in rows:
        size = [int(n) for n in str(row["sample"]).split("x")] if "x" in str(row["sample"]) else []
        if not size or math.prod(-(-n // r) for n, r in zip(size, reduction, strict=True)) > 1:
            continue
        where = f"data.datasets.{row['dataset']}: {row['sample']} ends as one voxel, reduced by {reduction} (D, H, W)"
        remedy = (
            "larger samples, model.backbone.timm_kwargs: {output_stride: 16} if the net accepts it, a plan with fewer "
            "strides, or norm: frozen | group"
        )
        if row["batch_size"] == 1:
            raise InputError(f"{where}, and BatchNorm cannot train on a single value. Remedies: batch_size, {remedy}")
        found.append(f"warning: {where}: BatchNorm sees {row['batch_size']} values there. Remedies: {remedy}")
    return found


def _row(row: dict[str, Any]) -> tuple[object, ...]:
    first = (row["dataset"], row["task"], f"{row['share']:.0%}", row["batch_size"], row["sample"])
    return (*first, row["train"], row["val"], row["test"], row["media"])


def _net(module: Any) -> str:
    count = sum(p.numel() for p in module.backbone.parameters())
    heads = sum(p.numel() for p in module.heads.parameters())
    spec = module.backbone.net.net_spec  # from the config or the published weights
    name = module.backbone_config.name
    told = f"{name}: {count / 1e6:.1f} M parameters, heads {heads / 1e6:.1f} M"
    return f"{told}\n{spec.inflation}"
