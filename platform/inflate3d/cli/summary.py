"""What a run is about to do, as a table before its first step: datasets, tasks, shares, samples, shapes, the net."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from inflate3d.cli.table import print_table


class RunSummary(Callback):
    """Prints the table once, before training starts."""

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print datasets, then the net and how long the run is."""
        rows = trainer.datamodule.rows()  # type: ignore[attr-defined]
        header = ("dataset", "task", "share", "batch", "sample", "train", "val", "test", "kind")
        print_table(header, [_row(row) for row in rows])
        print(_net(pl_module))
        start = f"from step {trainer.global_step} " if trainer.global_step else ""
        window = trainer.accumulate_grad_batches
        print(f"train {start}to step {trainer.max_steps}, {window} micro-batch{'es' * (window > 1)} a step", flush=True)


def _row(row: dict[str, Any]) -> tuple[object, ...]:
    first = (row["dataset"], row["task"], f"{row['share']:.0%}", row["batch_size"], row["sample"])
    return (*first, row["train"], row["val"], row["test"], row["kind"])


def _net(module: Any) -> str:
    count = sum(p.numel() for p in module.backbone.parameters())
    heads = sum(p.numel() for p in module.heads.parameters())
    config = module.backbone_config
    return f"{config.name}: {count / 1e6:.1f} M parameters, inflation {config.inflation}, heads {heads / 1e6:.1f} M"
