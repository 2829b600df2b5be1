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
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from inflate3d.sample import Batch

_ALIGN = 64
_NO_TENSORS: dict[str, Any] = {"image": None, "target": None, "spacing_mm": None}
Shape = tuple[int, ...]


class BatchMemory:
    """The blocks of one process, which grow to the largest batch; as many as there are batches under way."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, _: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def take(self, image: Shape, target: Shape) -> BatchPlace:
        """Return the place for a batch of these shapes (B, ...), free to be written."""
        if self._process != os.getpid():  # a fork's blocks are its parent's
            self.__init__()  # type: ignore[misc]
        size = _layout(image, target)[-1]
        free = [block for block in self._blocks if not block[0]]
        block = min((b for b in free if len(b) >= size), key=len, default=None)
        if block is None:  # what is too small is given up
            self._blocks = [b for b in self._blocks if not any(b is f for f in free)]
            block = _new_block(size)
            self._blocks.append(block)
        block[0] = 1
        return BatchPlace(block, image, target)


class BatchPlace:
    """A block and where in it lie image float32, target int64 and spacing_mm float32 of a batch."""

    def __init__(self, block: Tensor, image: Shape, target: Shape) -> None:
        self.block, self.image, self.target = block, image, target

    def tensors(self, memory: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return image, target and spacing_mm (B, 3), views of the block (or of `memory`, the same bytes)."""
        memory = self.block if memory is None else memory
        starts = _layout(self.image, self.target)
        shapes = (self.image, self.target, (self.image[0], 3))
        types = (torch.float32, torch.int64, torch.float32)
        image, target, spacing_mm = (
            memory[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
            for start, shape, dtype in zip(starts, shapes, types, strict=False)
        )
        return image, target, spacing_mm

    def lend(self, batch: Batch) -> Any:
        """Return the batch for its reader; in a worker, something that is unpickled as the batch."""
        return self._lent(batch) if get_worker_info() is None else _OnItsWay(self, batch)

    def _lent(self, batch: Batch) -> Batch:
        owner = self.block.numpy()  # an object that every tensor over it keeps alive
        weakref.finalize(owner, _give_back, self.block, os.getpid()).atexit = False
        image, target, spacing_mm = self.tensors(torch.from_numpy(owner))
        return replace(batch, image=image, target=target, spacing_mm=spacing_mm)


class _OnItsWay:
    """A batch in a worker; it unpickles as a Batch whose tensors are views of the one block."""

    def __init__(self, place: BatchPlace, batch: Batch) -> None:
        self.place, self.batch = place, replace(batch, **_NO_TENSORS)

    def __reduce__(self) -> Any:
        return BatchPlace._lent, (self.place, self.batch)


def _give_back(block: Tensor, process: int) -> None:
    if process == os.getpid():  # a fork's copy of the batch is not the batch
        block[0] = 0


def _layout(image: Shape, target: Shape) -> list[int]:
    """Return where image, target and spacing_mm begin, and where they end."""
    sizes = (_ALIGN, 4 * math.prod(image), 8 * math.prod(target), 12 * image[0])
    return list(itertools.accumulate(-(-size // _ALIGN) * _ALIGN for size in sizes))


def _new_block(size: int) -> Tensor:
    if get_worker_info() is None:
        return torch.empty(size, dtype=torch.uint8)
    storage: Any = torch.empty(0, dtype=torch.uint8).untyped_storage()._new_shared(size)  # as torch's default_collate
    return torch.empty(0, dtype=torch.uint8).set_(storage)
