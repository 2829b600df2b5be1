"""A table before a run's first step: datasets, tasks, shares, samples, shapes, the net."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from inflate3d.cli.table import print_table
from inflate3d.errors import InputError

_STEP = 8  # voxels: what suggested patches are a multiple of


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
        for warning in padding_warnings(trainer.datamodule):  # type: ignore[attr-defined]
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


def padding_warnings(data: Any) -> list[str]:
    """Return a line for each dataset whose patches exceed its median volume: what lies outside is padding."""
    found = []
    for name, patch in data.windows.items():
        shape = [int(n) for n in data.manifests[name].statistics.get("shape", {}).get("median", [])[1:]]
        if len(shape) != 3 or all(p <= n for p, n in zip(patch, shape, strict=True)):
            continue
        inside = math.prod(min(p, n) / p for p, n in zip(patch, shape, strict=True))
        fitting = [p if p <= n else max(n - n % _STEP, 1) for p, n in zip(patch, shape, strict=True)]
        found.append(
            f"warning: data.datasets.{name}.sample.patch_size is {list(patch)}, its median volume {shape} (D, H, W): "
            f"about {1 - inside:.0%} of each patch is padding. {fitting} would fit"
        )
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
