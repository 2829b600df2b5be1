"""Stops a run whose loss is not finite or explodes, and leaves a report that names interval, tasks and sample keys."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from inflate3d.files import write_whole
from inflate3d.sample import Batch

FORMAT = "inflate3d-failure/1"


class TrainingFailure(RuntimeError):
    """The run cannot go on: its loss is not finite, or has exploded."""


class LossWatch:
    """Remembers the micro-batches since the last logged row, and judges their losses when it is written.

    A dataset's loss explodes when its mean over an interval exceeds `explosion` times that of the first one.
    """

    def __init__(self, explosion: float = 20.0) -> None:
        self.explosion = explosion
        self.first: dict[str, float] = {}
        self._seen: list[tuple[Batch, str, Tensor]] = []

    def add(self, batch: Batch, task: str, loss: Tensor) -> None:
        """Remember a task's loss on a micro-batch, without its tensors and without waiting for the device."""
        self._seen.append((_without_tensors(batch), task, loss.detach()))

    def check(self, row: Mapping[str, float], *, step: int, steps: int, lr: float, folder: Path, rank: int) -> None:
        """Raise TrainingFailure if a loss of `row`, the means over `steps` steps up to `step`, is no good.

        `row` is the same on all ranks, so all of them stop; each reports its own samples.
        """
        seen, self._seen = self._seen, []
        faults = [fault for key, value in row.items() if (fault := self._fault(key, value))]
        if not faults:
            for key, value in row.items():
                self.first.setdefault(key, value)
            return
        entries = [_entry(batch, task, loss) for batch, task, loss in seen]
        guilty = [e for e in entries if not math.isfinite(e["loss"])] or sorted(entries, key=lambda e: -e["loss"])[:1]
        content = {
            "format": FORMAT,
            "rank": rank,
            "steps": [step - steps + 1, step],
            "faults": faults,
            "learning_rate": lr,
            "means": {k: _plain(v) for k, v in row.items()},
            "first_means": self.first,
            "micro_batches": [
                {**e, "loss": e["loss"] if math.isfinite(e["loss"]) else str(e["loss"])} for e in entries
            ],
        }
        report = folder / f"step-{step:08d}-rank{rank}.json"
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(report, json.dumps(content, indent=1))
        raise TrainingFailure(_message(faults, guilty, step=step, steps=steps, report=report))

    def state_dict(self) -> dict[str, float]:
        """Return what explosions are measured against."""
        return dict(self.first)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take it up again."""
        self.first = dict(state)

    def _fault(self, key: str, value: float) -> str | None:
        if not math.isfinite(value):
            return f"{key} is {value}"
        first = self.first.get(key)
        if key.endswith("/loss") and first is not None and value > self.explosion * max(first, 1e-3):
            return f"{key} is {value:.4g}, over {self.explosion:g} times the {first:.4g} that it began with"
        return None


def _message(faults: list[str], guilty: list[dict[str, Any]], *, step: int, steps: int, report: Path) -> str:
    lines = [f"steps {step - steps + 1} to {step}: {'; '.join(faults)}"]
    for e in guilty[:3]:
        keys = ", ".join(e["keys"][:8])
        lines.append(
            f"  micro-batch {e['micro_batch']}: task {e['task']}, dataset {e['dataset']}, loss {e['loss']:.4g}: {keys}"
        )
    lines.append(f"report: {report}")
    lines.append("Remedies: a lower learning rate, more warmup_steps, trainer.gradient_clip_val; look at these samples")
    return "\n".join(lines)


def _entry(batch: Batch, task: str, loss: Tensor) -> dict[str, Any]:
    return {
        "micro_batch": batch.micro_batch,
        "task": task,
        "dataset": batch.dataset,
        "loss": float(loss),
        "keys": list(batch.keys),
    }


def _plain(value: float) -> float | str:
    """JSON has no word for what is not finite."""
    return value if math.isfinite(value) else str(value)


def _without_tensors(batch: Batch) -> Batch:
    return Batch({}, {}, batch.keys, batch.dataset, None, batch.micro_batch)  # type: ignore[arg-type]
