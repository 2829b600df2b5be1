"""A call: what one forward of a net tells its layers (its clips, its domain), also where they are run again.

A call lives in its thread and ends with its forward. A net keeps nothing of it: threads do not meet, and nets copy,
pickle and export at any time.

Checkpointing (torch.utils.checkpoint) runs layers once more during the backward, when their forward is long over, in
whatever thread and order the backward takes, and hands them tensors alone. All that it keeps of the forward are the
inputs of the function that it will run again, and it saves them as autograd saves any tensor. So where a net
checkpoints, whoever saves a tensor saves the call with it (torch's saved_tensors_hooks), and whoever takes the tensor
out tells its call again: the inputs are taken out right before the function runs, in the thread that runs it. This
holds for both kinds of checkpoint and whoever calls them, for any number of forwards before the backward, and needs no
name of a block. What is told again counts in that one backward only.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

NO_BACKWARD = -1
# How nets and wrappers say that they checkpoint: timm, torchvision and timm's DenseNets, torch's checkpoint_wrapper.
_CHECKPOINTS = ("grad_checkpointing", "memory_efficient", "checkpoint_fn", "use_checkpoint", "with_cp")


class _Call(NamedTuple):
    """What is told, and the backward in which it is told (torch's number of it)."""

    backward: int = NO_BACKWARD
    told: Mapping[str, Any] = {}


class _Here(threading.local):
    """The calls of one thread: the one whose forward runs, and the one told again."""

    def __init__(self) -> None:
        self.call = _Call()
        self.again = _Call()


_here = _Here()


def told(name: str) -> Any:
    """Return what the forward that runs here has told by this name; None outside of any."""
    return _told_here().get(name)


def _told_here() -> Mapping[str, Any]:
    if torch.compiler.is_compiling():
        return _here.call.told
    backward = torch._C._current_graph_task_id()
    if _here.call.told and _here.call.backward == backward:
        return _here.call.told
    return _here.again.told if _here.again.backward == backward != NO_BACKWARD else {}


class telling:  # used as a function: with telling(...)
    """Tell all layers that run inside a value by its name."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value

    def __enter__(self) -> None:
        self.before = _here.call
        backward = NO_BACKWARD if torch.compiler.is_compiling() else torch._C._current_graph_task_id()
        _here.call = _Call(backward, {**_told_here(), self.name: self.value})

    def __exit__(self, *_: object) -> None:
        _here.call = self.before


def noting(net: nn.Module) -> AbstractContextManager[Any]:
    """Save what is told with every tensor saved for the backward, if a part of `net` checkpoints."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or is_recorded():
        return nullcontext()
    checkpoints = any(own.get(name) for own in map(vars, net.modules()) for name in _CHECKPOINTS)
    return _notes() if checkpoints else nullcontext()


def _notes() -> saved_tensors_hooks:
    """Hooks that note the call; hooks of someone around them (offloading, an outer checkpoint) do their own work."""
    outer = torch._C._autograd._top_saved_tensors_default_hooks(False)
    pack, unpack = outer if outer is not None else (_keep, _unchanged)

    def note(x: Tensor) -> tuple[Any, Mapping[str, Any]]:
        return pack(x), _told_here()

    def tell_again(noted: tuple[Any, Mapping[str, Any]]) -> Tensor:
        x: Tensor = unpack(noted[0])
        _here.again = _Call(torch._C._current_graph_task_id(), noted[1])
        return x

    return saved_tensors_hooks(note, tell_again)


def _keep(x: Tensor) -> tuple[Tensor, int]:
    return x.detach(), x._version


def _unchanged(kept: tuple[Tensor, int]) -> Tensor:
    """Return the tensor; as autograd itself, which does not look at what hooks keep, refuse one that was changed."""
    x, version = kept
    if x._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: a "
            f"{x.type()} of shape {list(x.shape)} is at version {x._version}; expected version {version} instead"
        )
    return x


def is_recorded() -> bool:
    """Whether operations are recorded or transformed just now (compile, export, jit.trace, torch.func, dual levels).

    Then only torch's own operations will do, in a way that does not hang on sizes.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or is_transformed()
        or torch.autograd.forward_ad._current_level >= 0
    )


def is_transformed() -> bool:
    """Whether the operations run under torch.func (vmap, grad, jvp...)."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
