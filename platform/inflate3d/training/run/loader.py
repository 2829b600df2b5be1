"""A run's loader: it adds up how long batches are waited for, and knows of a fault before its batch is due."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from inflate3d.data.stream.stream_error import StreamError
from inflate3d.remote.outcomes import Unreachable

Fault = Unreachable | StreamError


class RunLoader(DataLoader[Any]):
    """A DataLoader that holds up to `ahead` batches more than it has given.

    Where the next one cannot be had (an outage, too many broken samples), `fault` says so at once, and is raised when
    that batch's turn comes: until then ranks can agree and save. asked_early: the first batch is asked for before the
    run starts, where ranks cannot agree yet: if it cannot be had, None stands for it.
    """

    ahead = 0
    asked_early = False
    seconds_waited = 0.0
    fault: Fault | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the loader's batches."""
        self.fault = None
        batches, held = super().__iter__(), deque[Any]()
        if self.ahead:
            self._fill(held, batches)
        return self._given(held, batches)

    def _given(self, held: deque[Any], batches: Iterator[Any]) -> Iterator[Any]:
        self._fill(held, batches)
        if self.asked_early and self.fault is not None and not held:
            yield None
        while True:
            self._fill(held, batches)
            if not held:
                if self.fault is not None:
                    raise self.fault
                return
            yield held.popleft()

    def _fill(self, held: deque[Any], batches: Iterator[Any]) -> None:
        start = time.perf_counter()
        try:
            while len(held) <= self.ahead and self.fault is None:
                held.append(next(batches))
        except StopIteration:
            pass
        except (Unreachable, StreamError) as fault:
            self.fault = fault
        finally:
            self.seconds_waited += time.perf_counter() - start


def seconds_waited(trainer: Any) -> float:
    """Return how long this process has waited for training batches until now."""
    return float(getattr(trainer.train_dataloader, "seconds_waited", 0.0))


def fault_ahead(trainer: Any) -> Fault | None:
    """Return why a batch of training, or of the validation under way, cannot be had on this rank; None if it can."""
    loaders = [trainer.train_dataloader, trainer.val_dataloaders if trainer.validating else None]
    return next((fault for loader in loaders if (fault := getattr(loader, "fault", None)) is not None), None)
