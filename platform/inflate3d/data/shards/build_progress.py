"""How far a build of shards is: a bar at a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time

_LINE_EVERY_S = 15.0


class BuildProgress:
    """Counts cases (or tars) and bytes; shows how many, how many a second and MB/s. Nothing if `shown` is False."""

    def __init__(self, total: int, shown: bool, *, unit: str = "cases") -> None:
        self._total, self._shown, self._unit = total, shown, unit
        self._speed = "samples/s" if unit == "cases" else f"{unit}/s"
        self._cases = self._bytes = self._read = 0
        self._started = self._last_line = time.monotonic()
        self._bar = _bar(total) if shown and sys.stderr.isatty() else None

    def __enter__(self) -> BuildProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._shown and kind is None:
            print(f"shards: {self._cases}/{self._total} {self._unit}, {self._rate()}", file=sys.stderr, flush=True)

    def advance(self, cases: int, size: int) -> None:
        """Count cases and the bytes read for them; 0 bytes for those that were already there."""
        self._cases += cases
        self._bytes += size
        self._read += cases if size else 0
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._cases, rate=self._rate())
        elif self._shown and time.monotonic() - self._last_line > _LINE_EVERY_S:
            self._last_line = time.monotonic()
            print(f"shards: {self._cases}/{self._total} {self._unit}, {self._rate()}", file=sys.stderr, flush=True)

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-3)
        return f"{self._read / seconds:.1f} {self._speed}, {self._bytes / seconds / 1e6:.1f} MB/s"


def _bar(total: int):  # type: ignore[no-untyped-def]  # rich's class, imported late
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
    bar.add_task("shards", total=total, rate="")
    return bar
