"""The memory of batches: a few blocks, each used again once its reader has let go of the batch before.

A new block costs more than what is written into it: each of its pages is zeroed and mapped on first touch (LOG.md).
In a DataLoader's worker a block is shared memory, and one: what a batch costs on its way to the trainer is one file
handle. Its first byte tells whether a batch is in it. The reader's tensors keep the block alive, and when the last of
them is gone, views and what autograd saved included, the byte is cleared, in whichever process that is.
"""

from __future__ import annotations

import itertools
import math
import os
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from inflate3d.data.stream.stream_error import StreamError
from inflate3d.sample import Batch, Sample

_ALIGN = 64
_SPACING = "spacing_mm"


class BatchMemory:
    """The blocks of one process, which grow to the largest batch; as many as there are batches under way."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, _: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def take(self, batch_size: int, like: Sample) -> BatchPlace:
        """Return the place for so many samples of one's shapes and types, free to be written."""
        if self._process != os.getpid():  # a fork's blocks are its parent's
            self.__init__()  # type: ignore[misc]
        fields = _fields(batch_size, like)
        size = _layout(fields)[-1]
        free = [block for block in self._blocks if not block[0]]
        block = min((b for b in free if len(b) >= size), key=len, default=None)
        if block is None:  # what is too small is given up
            self._blocks = [b for b in self._blocks if not any(b is f for f in free)]
            block = _new_block(size)
            self._blocks.append(block)
        block[0] = 1
        return BatchPlace(block, fields)


class Field(NamedTuple):
    """One tensor of a batch: of its `views` or `targets`, by name, or its spacing_mm."""

    part: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class BatchPlace:
    """A block and where in it the tensors of a batch lie."""

    def __init__(self, block: Tensor, fields: list[Field]) -> None:
        self.block, self.fields = block, fields

    def tensors(self, memory: Tensor | None = None) -> dict[str, Any]:
        """Return {"views", "targets": tensors by name, "spacing_mm": (B, 3)}, views of the block (or of `memory`)."""
        memory = self.block if memory is None else memory
        found: dict[str, Any] = {"views": {}, "targets": {}}
        for start, field in zip(_layout(self.fields), self.fields, strict=False):
            tensor = memory[start : start + field.nbytes].view(field.dtype).view(field.shape)
            if field.part == _SPACING:
                found[_SPACING] = tensor
            else:
                found[field.part][field.name] = tensor
        return found

    def lend(self, batch: Batch) -> Any:
        """Return the batch for its reader; in a worker, something that is unpickled as the batch."""
        return self._lent(batch) if get_worker_info() is None else _OnItsWay(self, batch)

    def _lent(self, batch: Batch) -> Batch:
        owner = self.block.numpy()  # an object that every tensor over it keeps alive
        weakref.finalize(owner, _give_back, self.block, os.getpid()).atexit = False
        return replace(batch, **self.tensors(torch.from_numpy(owner)))


class _OnItsWay:
    """A batch in a worker; it unpickles as a Batch whose tensors are views of the one block."""

    def __init__(self, place: BatchPlace, batch: Batch) -> None:
        nothing: dict[str, Any] = {"views": {}, "targets": {}, _SPACING: None}
        self.place, self.batch = place, replace(batch, **nothing)

    def __reduce__(self) -> Any:
        return BatchPlace._lent, (self.place, self.batch)


def _give_back(block: Tensor, process: int) -> None:
    if process == os.getpid():  # a fork's copy of the batch is not the batch
        block[0] = 0


def _fields(batch_size: int, like: Sample) -> list[Field]:
    parts = [("views", name, tensor) for name, tensor in like.views.items()]
    parts += [("targets", name, tensor) for name, tensor in like.targets.items()]
    fields = [Field(part, name, (batch_size, *tensor.shape), tensor.dtype) for part, name, tensor in parts]
    return [*fields, Field(_SPACING, _SPACING, (batch_size, 3), torch.float32)]


def _layout(fields: Sequence[Field]) -> list[int]:
    """Return where each tensor begins, and where the last one ends."""
    sizes = (_ALIGN, *(field.nbytes for field in fields))
    return list(itertools.accumulate(-(-size // _ALIGN) * _ALIGN for size in sizes))


def _new_block(size: int) -> Tensor:
    if get_worker_info() is None:
        return torch.empty(size, dtype=torch.uint8)
    try:
        storage: Any = torch.empty(0, dtype=torch.uint8).untyped_storage()._new_shared(size)  # as torch's own collate
    except RuntimeError as fault:
        if "shared memory" not in str(fault):
            raise
        raise StreamError.of_shared_memory(size) from fault
    return torch.empty(0, dtype=torch.uint8).set_(storage)
