"""What tasks keep and never train (teachers, frozen nets): moved and saved with the run, unknown to its optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inflate3d.contracts import AbstractTask
from inflate3d.errors import InputError
from inflate3d.nn.teacher import saved_buffers


class FrozenModules:
    """The frozen modules of all tasks, as <task>.<name>. No nn.Module: neither DDP, ZeRO nor optimisers see it."""

    def __init__(self, tasks: Mapping[str, AbstractTask]) -> None:
        """Put them into evaluation mode, without gradients."""
        self._tasks = tasks
        for _, module in self.items():
            module.eval().requires_grad_(False)

    def items(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield each with its name."""
        for name, task in self._tasks.items():
            for own, module in task.frozen_modules().items():
                yield f"{name}.{own}", module

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Move or cast them, as nn.Module._apply does."""
        for _, module in self.items():
            module._apply(change)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all their tensors on the CPU."""
        return {
            f"{name}.{key}": value.detach().cpu().clone()
            for name, module in self.items()
            for key, value in module.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take their tensors up again. InputError where they are others."""
        own = {f"{name}.{key}": value for name, m in self.items() for key, value in m.state_dict().items()}
        if own.keys() != state.keys():
            missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
            raise InputError(f"the checkpoint's frozen modules are others: missing {missing[:3]}, unknown {extra[:3]}")
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(state[key])

    def share_buffers(self) -> None:
        """Give every rank the first one's buffers: statistics that follow a rank's own batches would part them."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for _, module in self.items():
                for buffer in saved_buffers(module).values():
                    torch.distributed.broadcast(buffer, 0)
