"""Where the time of a sample goes: reading, decoding, cropping, normalising, augmenting, and joining to a batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from inflate3d.data.samples.chunked import ChunkedArray
from inflate3d.data.stream.batch_memory import BatchMemory
from inflate3d.data.stream.batches import Source, collate
from inflate3d.errors import InputError
from inflate3d.sample import Sample
from inflate3d.seeds import mix

STAGES = ("read", "decode", "crop", "normalise", "augment", "collate")
"""crop holds all that the others do not: cutting, resizing, brightness, checks. Chunks are read while decoded."""


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds a sample in one process, by stage; samples: how many were measured, broken ones left out."""

    milliseconds: dict[str, float]
    samples: int
    broken: int

    @property
    def total(self) -> float:
        """Milliseconds a sample, all stages together."""
        return sum(self.milliseconds.values())

    @property
    def slowest(self) -> str:
        """The stage that takes most."""
        return max(self.milliseconds, key=lambda stage: self.milliseconds[stage])


def measure_stages(source: Source, num_samples: int) -> StageTimes:
    """Make the first samples of a training source, those of a first batch unmeasured, and time each stage.

    The source is of no use afterwards: its stage is wrapped. Raises InputError if every sample is broken.
    """
    clock, memory = _Clock(), BatchMemory()
    _wrap(source.stage, clock)
    size, warm_up = min(source.batch_size, num_samples), min(4, num_samples)
    slots = source.order.slots(0, warm_up + num_samples)
    samples: list[Sample] = []
    made, broken, fault = 0, 0, None
    for i, (epoch, _, shard, index) in enumerate(zip(*(s.tolist() for s in slots), strict=True)):
        if i == warm_up:
            clock.reset()
            made, samples = 0, []
        try:
            samples.append(_make(source, epoch, shard, index, clock))
        except (InputError, ValueError) as error:
            broken, fault = broken + 1, error
            continue
        made += 1
        if len(samples) == size:
            clock.timed("collate", _collate)(samples, source, memory)
            samples = []
    if not made:
        raise InputError(f"dataset {source.name!r}: all of {broken} samples are broken, the last: {fault}")
    if samples:
        clock.timed("collate", _collate)(samples, source, memory)
    return StageTimes({stage: 1e3 * clock.seconds.get(stage, 0.0) / made for stage in STAGES}, made, broken)


def _collate(samples: Sequence[Sample], source: Source, memory: BatchMemory) -> None:
    collate([lambda out=None, made=made: made for made in samples], source, memory, micro_batch=-1)


class _Clock:
    """Seconds by name; a call inside another counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside: list[float] = []

    def reset(self) -> None:
        self.seconds = {}

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent = time.perf_counter() - start
                self.seconds[name] = self.seconds.get(name, 0.0) + spent - self._inside.pop()
                if self._inside:
                    self._inside[-1] += spent

        return measured


def _make(source: Source, epoch: int, shard: int, index: int, clock: _Clock) -> Sample:
    raw = clock.timed("read", source.reader.sample)(shard, index, borrow=True)
    members = clock.timed("decode", raw.decode)()
    for member in members.values():
        if isinstance(member, ChunkedArray):
            member.decode = clock.timed("decode", member.decode)  # type: ignore[method-assign]
    return clock.timed("crop", source.stage)(raw.key, members, mix(source.order.seed, "sample", epoch, raw.key))


def _wrap(stage: Any, clock: _Clock) -> None:
    """Time the parts of a stage that are objects of their own."""
    for inner in getattr(stage, "stages", {"": stage}).values():
        for name in ("decode", "normalise", "augment"):
            if (part := getattr(inner, name, None)) is not None:
                setattr(inner, name, clock.timed(name, part))
