"""The memory of a batch is used again, but never while anything of the batch is alive."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from inflate3d.data.stream.batch_memory import BatchMemory
from inflate3d.sample import Batch, Sample
from torch.utils.data import DataLoader, IterableDataset


class Counted(IterableDataset):
    """Batch n is filled with n; every third is larger."""

    def __init__(self) -> None:
        self.memory = BatchMemory()

    def batch(self, n: int) -> Any:
        views = {"image": torch.empty(1, 8, 8, 8 + 8 * (n % 3 == 2)), "local": torch.empty(1, 4, 4, 4)}
        targets = {"label": torch.empty((), dtype=torch.int64), "age": torch.empty(()), "tags": torch.empty(3)}
        place = self.memory.take(2, Sample("a", views, targets))
        tensors = place.tensors()
        for tensor in (*tensors["views"].values(), *tensors["targets"].values(), tensors["spacing_mm"]):
            tensor.fill_(n)
        return place.lend(Batch(keys=["a", "b"], dataset="d", micro_batch=n, **tensors))

    def __iter__(self) -> Iterator[Any]:
        return (self.batch(n) for n in range(40))


def holds(batch: Batch, n: int) -> bool:
    assert [t.dtype for t in batch.targets.values()] == [torch.int64, torch.float32, torch.float32]
    assert [tuple(t.shape) for t in batch.targets.values()] == [(2,), (2,), (2, 3)]
    return all((t == n).all() for t in (*batch.views.values(), *batch.targets.values(), batch.spacing_mm))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_arrive_whole_while_some_are_kept(workers):
    kept: list[Batch] = []
    view = None
    for n, batch in enumerate(DataLoader(Counted(), batch_size=None, num_workers=workers)):
        assert holds(batch, n)
        view = batch.image[1, 0, 3].numpy() if n == 4 else view
        kept += [batch] if n in (0, 7, 8) else []
    assert view is not None
    assert (view == 4).all()
    assert all(holds(batch, batch.micro_batch) for batch in kept)


@pytest.mark.slow
def test_a_place_is_used_again_once_nothing_of_its_batch_is_left():
    data = Counted()
    first = data.batch(0)
    place, view = first.image.data_ptr(), first.spacing_mm[0]
    weight = torch.ones(8, requires_grad=True)
    loss = (first.image * weight).sum()  # autograd keeps the image
    del first
    assert data.batch(1).image.data_ptr() != place
    del view
    gc.collect()
    assert data.batch(1).image.data_ptr() != place
    loss.backward()
    del loss
    gc.collect()
    assert place in {data.batch(1).image.data_ptr(), data.batch(1).image.data_ptr()}


def test_what_grew_too_small_is_given_up_and_the_largest_is_kept():
    data = Counted()
    data.batch(0)
    large = data.batch(2).image.data_ptr()
    assert {data.batch(n).image.data_ptr() for n in range(3, 9)} == {large}


@pytest.mark.slow
def test_a_fork_does_not_write_into_its_parents_memory():
    data = Counted()
    batch = data.batch(0)
    child = os.fork()
    if child == 0:
        del batch
        gc.collect()
        os._exit(int(bool(data.batch(5).image.sum() == 0)))
    assert os.waitpid(child, 0)[1] == 0
    assert holds(batch, 0)
