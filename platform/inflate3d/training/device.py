"""Device: what a fit does by default where it runs on a GPU, and its option to compile; on a CPU nothing changes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import Trainer as LightningTrainer
from torch import Tensor, nn

from inflate3d.training.run.folder import ENVIRONMENT, record_settings

log = logging.getLogger(__name__)

FEW_SHAPES = 8
"""Input shapes up to which cuDNN tries its algorithms at the first batch of each."""


class Trainer(LightningTrainer):
    """Lightning's Trainer, which may also compile the backbone."""

    def __init__(self, *args: Any, compile: bool = False, **kwargs: Any) -> None:
        """compile: run the backbone through torch.compile, anew for each domain and shape; heads stay as they are."""
        super().__init__(*args, **kwargs)
        self.compile = compile


class DeviceDefaults(pl.Callback):
    """Sets torch up for the run's device, once, and says what it set.

    On CUDA: matrix products in TF32 (torch.set_float32_matmul_precision("high")), unless another precision was chosen;
    cuDNN's search for algorithms where the run has few shapes, unless trainer.benchmark says otherwise. The module
    brings its kernels to channels-last and the optimiser to one fused kernel a step.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Set what is not chosen; compile where trainer.compile asks for it."""
        chosen = cuda_defaults(trainer) if trainer.strategy.root_device.type == "cuda" else []
        if getattr(trainer, "compile", False):
            pl_module.backbone.compile()
            chosen.append("the backbone is compiled (trainer.compile)")
        if chosen and trainer.is_global_zero:
            log.info("on this device: %s", "; ".join(chosen))

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Lay what the optimiser has kept as the weights lie: a checkpoint may come from another device.

        Then note in environment.json what is on, where a run keeps one.
        """
        for optimizer in trainer.optimizers if trainer.strategy.root_device.type == "cuda" else ():
            lay_state_as_weights(optimizer)
        if trainer.is_global_zero and (Path(trainer.default_root_dir) / ENVIRONMENT).is_file():
            record_settings(trainer.default_root_dir, settings_of(trainer, pl_module))


def settings_of(trainer: Any, module: nn.Module) -> dict[str, Any]:
    """Return how a fit computes on its device, as it is just now: for environment.json."""
    on_cuda = trainer.strategy.root_device.type == "cuda"
    kernels = [p for p in module.parameters() if p.ndim == 5]
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return {
        "precision": str(trainer.precision),
        "float32_matmul": torch.get_float32_matmul_precision(),
        "tf32_convolutions": on_cuda and torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": on_cuda and torch.backends.cudnn.benchmark,
        "channels_last": all(p.is_contiguous(memory_format=torch.channels_last_3d) for p in kernels),
        "copies_do_not_block": on_cuda,  # from pinned memory, see DataModule
        "fused_optimizer": bool(groups) and all(bool(group.get("fused")) for group in groups),
        "gradient_clip_val": trainer.gradient_clip_val,
        "compile": getattr(trainer, "compile", False),
    }


def cuda_defaults(trainer: Any) -> list[str]:
    """Set what CUDA takes by default, and return a phrase for each."""
    if torch.get_float32_matmul_precision() == "highest":
        torch.set_float32_matmul_precision("high")
    said = [f"float32 matrix products are {torch.get_float32_matmul_precision()!r} (high: TF32)"]
    shapes = len(trainer.datamodule.datasets)  # a dataset's training samples have one shape
    if not torch.backends.cudnn.benchmark and shapes <= FEW_SHAPES:
        torch.backends.cudnn.benchmark = True
    said.append(f"cudnn.benchmark is {torch.backends.cudnn.benchmark} ({shapes} shapes in training)")
    return [*said, "kernels lie channels-last", "copies to the device do not block", "the optimiser is fused if it can"]


def channels_last(module: nn.Module) -> None:
    """Bring kernels of four and five axes to channels-last memory, where GPUs compute with them as they lie."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])


def lay_state_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """Bring what an optimiser keeps of each weight to the weight's own layout: fused kernels refuse any other."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            is_alike = isinstance(value, Tensor) and value.shape == parameter.shape
            if is_alike and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
