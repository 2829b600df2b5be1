"""DeepSpeed's ZeRO 1, 2 and 3 as a Lightning strategy whose checkpoints are everyone's: one file, whatever the ranks.

Lightning's own strategy demands CUDA and lets DeepSpeed write a folder of pickles that fits its number of ranks. This
one also runs on CPU ranks (gloo), and gathers weights and optimiser states to rank 0 when it saves, in the very format
of an ordinary run: a checkpoint of any strategy is gone on with by any other, with any number of ranks, and publishes.
The price is that rank 0 holds the whole state in host memory while it saves (12 bytes a parameter with Adam).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ParallelStrategy
from torch import Tensor

from inflate3d.errors import InputError
from inflate3d.training.strategies import deepspeed_state as state

PRECISIONS = ("32-true", "bf16-mixed")


class DeepSpeed(DeepSpeedStrategy):
    """ZeRO by config: `trainer.strategy: {class_path: inflate3d.training.DeepSpeed, init_args: {stage: 2}}`.

    DDP is faster where a net and its optimiser fit (docs/training.md says when ZeRO pays). bf16-mixed means the same as
    under DDP: weights and statistics in float32, the forward pass under autocast. Optimisers must work element by
    element (SGD, Adam and their kin), since ZeRO flattens what they see.
    """

    def __init__(
        self,
        stage: int = 2,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        bucket_size: int = 50_000_000,
        config: dict[str, Any] | None = None,
    ) -> None:
        """stage: 1 shards optimiser states, 2 gradients too, 3 weights too. offload_*: to host memory.

        bucket_size: parameters that are reduced or gathered at once. config: further entries of a DeepSpeed config,
        merged over ours. InputError where a setting is impossible or DeepSpeed is not installed.
        """
        if stage not in (1, 2, 3):
            raise InputError(f"DeepSpeed: stage is {stage}; it must be 1, 2 or 3. For plain data parallelism: ddp")
        if offload_parameters and stage != 3:
            raise InputError(f"DeepSpeed: offload_parameters needs stage 3; stage is {stage}")
        if bucket_size < 1:
            raise InputError(f"DeepSpeed: bucket_size is {bucket_size}; it must be at least 1")
        if find_spec("deepspeed") is None:
            raise InputError("DeepSpeed is not installed; install it: pip install 'inflate3d[deepspeed]'")
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when DeepSpeed is imported
        super().__init__(
            stage=stage,
            offload_optimizer=offload_optimizer,
            offload_parameters=offload_parameters,
            allgather_bucket_size=bucket_size,
            reduce_bucket_size=bucket_size,
            overlap_comm=torch.cuda.is_available(),
            logging_batch_size_per_gpu=1,
        )
        assert isinstance(self.config, dict)
        # Any torch optimiser may run on the host; DeepSpeed's own is compiled on first use.
        self.config["zero_force_ds_cpu_optimizer"] = False
        _merge(self.config, config or {})
        self.stage = stage

    # ------------------------------------------------------------------------------------------------ CPU ranks

    @property
    def root_device(self) -> torch.device:
        """The device of this rank; DeepSpeed wants an index on the CPU too."""
        device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device

    def setup_environment(self) -> None:
        """Join the process group: as Lightning's strategy, without its demand for CUDA."""
        assert self.accelerator is not None
        if self.precision_plugin.precision not in PRECISIONS:
            raise InputError(
                f"trainer.precision is {self.precision_plugin.precision}; under DeepSpeed use one of {PRECISIONS}"
            )
        ParallelStrategy.setup_environment(self)
        self.setup_distributed()

    def setup_distributed(self) -> None:
        """Set ranks and start the group; indices are checked on GPUs alone."""
        if self.root_device.type == "cuda":
            super().setup_distributed()
        else:
            import deepspeed.ops

            # Shared-memory collectives would be compiled on first use; gloo serves as well.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
            self.set_world_ranks()
            self._init_deepspeed_distributed()

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Build the net whole: inflation reads and rewrites weights. ZeRO-3 shards it when training is set up."""
        with nullcontext():
            yield

    def setup(self, trainer: pl.Trainer) -> None:
        """Wrap module and optimiser; buckets are no larger than the net."""
        assert isinstance(self.config, dict)
        assert self.lightning_module is not None
        count = max(sum(p.numel() for p in self.lightning_module.parameters()), 1)
        zero = self.config["zero_optimization"]
        for key in ("allgather_bucket_size", "reduce_bucket_size"):
            smallest = min(zero[key], count)
            zero[key] = smallest + smallest % 2  # ZeRO 1 and 2 take even ones alone
        if self.stage == 3:
            state.register_direct_parameters(self.lightning_module)
        # Autocast does the casting, as under DDP.
        self.precision_plugin.convert_input = lambda data: data  # type: ignore[method-assign]
        super().setup(trainer)

    def _format_config(self) -> None:
        super()._format_config()
        assert isinstance(self.config, dict)
        if self.precision_plugin.precision == "bf16-mixed":
            self.config["bf16"] = {"enabled": False}
            self.config["torch_autocast"] = {
                "enabled": True,
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],  # gradients are reduced in float32, as under DDP
            }

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Backward, the loss divided by accumulate_grad_batches once: Lightning has done it, DeepSpeed would again.

        Divided twice, gradient clipping and every optimiser that feels the gradient's scale work on another one.
        """
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    # ---------------------------------------------------------------------------------------------- checkpoints

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole float32 state on rank 0, on the CPU; {} elsewhere. All ranks must call it."""
        assert self.lightning_module is not None
        return state.gather_module(self.lightning_module, keep=self.is_global_zero)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return what the plain optimiser's state_dict would be, on rank 0; {} elsewhere. All ranks must call it."""
        assert self.lightning_module is not None
        return state.gather_optimizer(optimizer, self._groups(), keep=self.is_global_zero)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write one file from rank 0, as every other strategy."""
        DDPStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read one file on every rank."""
        return DDPStrategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Hand each rank its share of the weights."""
        assert self.lightning_module is not None
        state.scatter_module(self.lightning_module, checkpoint["state_dict"])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Hand each rank its share of the optimiser's states."""
        assert self.lightning_module is not None
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            state.scatter_optimizer(optimizer, self._groups(), saved)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Ours to restore: see load_optimizer_state_dict."""
        return True

    def _groups(self) -> list[list[Tensor]]:
        assert self.lightning_module is not None
        return self.lightning_module.optimizer_parameters  # type: ignore[return-value]


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value
