"""Reads raw cases ahead of the shard writer, in worker processes, and hands them over in order."""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inflate3d.contracts import AbstractDataset, Case, DatasetCard, medium_of
from inflate3d.data.shards.members import CHUNK_FROM_BYTES, encode_sample
from inflate3d.errors import InputError


@dataclass(frozen=True)
class Encoded:
    """A case that is ready for a shard: its members by suffix."""

    key: str
    members: dict[str, bytes]

    @property
    def size(self) -> int:
        return sum(map(len, self.members.values()))


@dataclass(frozen=True)
class Rejected:
    """A case that cannot be read, and why; files are named from the raw folder on."""

    key: str
    reason: str
    size: int = 0


Outcome = Encoded | Rejected


class ReadAhead:
    """Encodes cases in order, up to two a worker ahead of who takes them; 0 workers: in this process, none ahead."""

    def __init__(
        self, dataset: AbstractDataset, card: DatasetCard, num_workers: int, encoding: dict[str, Any] | None = None
    ) -> None:
        """encoding: how every sample is encoded anew (AbstractMedium.encoding); None keeps them as they are."""
        self._what, self._window = (dataset, card, encoding), 2 * num_workers
        self._cases: Sequence[Case] = ()
        self._position = 0
        self._ahead: deque[Future[Outcome]] = deque()
        self._pool: ProcessPoolExecutor | None = None
        if num_workers:
            # Not fork: ITK and FFmpeg may have threads here, which a forked child would lack and wait for.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(num_workers, context, _start_worker, self._what)

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def read(self, case: Case) -> Outcome:
        """Encode one case here and now."""
        return _encode(*self._what, case)

    def start(self, cases: Sequence[Case], position: int) -> Iterator[Outcome]:
        """Yield the outcomes of cases[position:]; what is under way is used if the last start stopped there."""
        if cases is not self._cases or position != self._position:
            for future in self._ahead:
                future.cancel()
            self._ahead.clear()
            self._cases, self._position = cases, position
        while self._position < len(cases):
            outcome = self._take()
            self._position += 1
            yield outcome

    def _take(self) -> Outcome:
        if self._pool is None:
            return self.read(self._cases[self._position])
        under_way = self._position + len(self._ahead)
        for case in self._cases[under_way : self._position + self._window]:
            self._ahead.append(self._pool.submit(_encode_in_worker, case))
        try:
            return self._ahead.popleft().result()
        except BrokenProcessPool as fault:
            fault.add_note("A worker died, perhaps for want of memory. Run again with fewer: finished shards are kept.")
            raise


def _encode(dataset: AbstractDataset, card: DatasetCard, encoding: dict[str, Any] | None, case: Case) -> Outcome:
    try:
        raw = dataset.read(case)
        if encoding is not None:
            raw = medium_of(card).reencode(raw, encoding)
        members = encode_sample(raw, card, key=case.key, group=case.group, chunk_from=CHUNK_FROM_BYTES)
    except InputError as fault:
        return Rejected(case.key, _from_raw_folder(str(fault), dataset))
    except Exception as fault:
        fault.add_note(f"while reading case {case.key!r} of {card.name}")
        raise
    return Encoded(case.key, members)


def _from_raw_folder(reason: str, dataset: AbstractDataset) -> str:
    """Return a reason whose paths begin below the dataset's folders: where these lie on this machine is nobody's."""
    paths = [value for value in vars(dataset).values() if isinstance(value, Path) and value.is_absolute()]
    folders = {path if path.is_dir() else path.parent for path in paths}
    for folder in sorted(map(str, folders), key=len):
        reason = re.sub(rf"(?<![\w.-]){re.escape(folder)}/", "", reason)
    return reason


_in_worker: tuple[AbstractDataset, DatasetCard, dict[str, Any] | None]


def _start_worker(dataset: AbstractDataset, card: DatasetCard, encoding: dict[str, Any] | None) -> None:
    global _in_worker
    _in_worker = (dataset, card, encoding)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """Leave when the build is killed; a pool's worker would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(case: Case) -> Outcome:
    return _encode(*_in_worker, case)
