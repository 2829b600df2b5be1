"""Cells: an arm, a mode, a share of the labels and a seed give one number; each finished one is a file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inflate3d.errors import InputError
from inflate3d.evaluation.transfer import probes
from inflate3d.evaluation.transfer.arms import Arm
from inflate3d.evaluation.transfer.build import build_module
from inflate3d.evaluation.transfer.features import FeatureCache
from inflate3d.evaluation.transfer.finetune import answer, fine_tune
from inflate3d.evaluation.transfer.frozen import (
    OWN,
    RECALIBRATED,
    Frozen,
    frozen_features,
    measure_frozen,
    recalibrate,
)
from inflate3d.evaluation.transfer.holdout import Listed
from inflate3d.evaluation.transfer.protocol import FROZEN, Mode, digest
from inflate3d.evaluation.transfer.target import Target
from inflate3d.files import write_whole
from inflate3d.nn.recalibrate import batch_norms

CELLS, FEATURES = "cells", "features"
_FORMAT = "inflate3d-transfer-cell/1"
_MOST_IN_MEMORY = 8  # starts whose features are kept in memory


@dataclass(frozen=True)
class Cell:
    """One measurement. seed: of the head, the labelled samples, the order, and of an arm's random weights."""

    arm: str
    mode: Mode
    fraction: float
    seed: int

    @property
    def file(self) -> str:
        """Its file's name."""
        arm = "".join(c if c.isalnum() or c in "._-" else "_" for c in self.arm)
        return f"{arm}-{self.mode}-{self.fraction:g}-{self.seed}.json"

    def __str__(self) -> str:
        return f"{self.arm}, {self.mode}, {self.fraction:.0%} of labels, seed {self.seed}"


def groups_of(arms: Sequence[Arm], target: Target) -> list[list[Cell]]:
    """Return the cells in groups that share their choice of a learning rate: the seeds of one arm, mode and share."""
    p = target.protocol
    return [
        [Cell(arm.name, mode, fraction, seed) for seed in p.seeds]
        for mode in p.modes
        for fraction in p.fractions
        for arm in arms
    ]


class CellRunner:
    """Runs cells and keeps their results in a folder; finished ones are read back, never run again."""

    def __init__(self, arms: Sequence[Arm], target: Target, folder: str | Path, *, device: str = "cpu") -> None:
        self.arms = {arm.name: arm for arm in arms}
        self.target, self.folder, self.device = target, Path(folder), device
        self.cache = FeatureCache(self.folder / FEATURES)
        self._frozen: dict[tuple[str, int], Frozen] = {}

    def run(self, group: Sequence[Cell], report: Callable[[Cell, dict[str, Any]], None]) -> None:
        """Run the unfinished cells of a group."""
        for cell in group:
            if self.read(cell) is None:
                started = time.monotonic()
                found = self._frozen_cell(cell) if cell.mode in FROZEN else self._fine_tuned_cell(cell)
                record = {**self._identity(cell), **found, "seconds": round(time.monotonic() - started, 1)}
                self._write(cell.file, record)
                report(cell, record)

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """Return a finished cell, or None. InputError if it was made with another protocol or arm."""
        return self._read(cell.file, self._identity(cell))

    # ------------------------------------------------------------------------------------------------------- frozen

    def _frozen_cell(self, cell: Cell) -> dict[str, Any]:
        return measure_frozen(self.target, self._features(cell), mode=cell.mode, fraction=cell.fraction, seed=cell.seed)

    def _features(self, cell: Cell) -> Frozen:
        key = (cell.arm, cell.seed)
        if key not in self._frozen:
            backbone = build_module(self.arms[cell.arm], self.target, seed=cell.seed, device=self.device).backbone
            while len(self._frozen) >= _MOST_IN_MEMORY:
                del self._frozen[next(iter(self._frozen))]
            self._frozen[key] = frozen_features(backbone, self.target, self.cache)
        return self._frozen[key]

    # -------------------------------------------------------------------------------------------------- fine-tuning

    def _fine_tuned_cell(self, cell: Cell) -> dict[str, Any]:
        """Train at the learning rate chosen for the group, then read the test samples, with both statistics."""
        target, protocol = self.target, self.target.protocol
        choice = self._learning_rate(cell)
        samples = target.labelled(cell.fraction, cell.seed)
        module = self._train(cell, samples, learning_rate=choice["chosen"], steps=protocol.steps)
        own = answer(module, target, target.test, target.test_split).to_dict()
        beside = {OWN: own["total"]}
        if batch_norms(module.backbone):
            recalibrate(module.backbone, target)
            beside[RECALIBRATED] = answer(module, target, target.test, target.test_split).to_dict()["total"]
        return {
            "chosen": {"features": OWN, "setting": choice["chosen"]},
            "choice": {OWN: choice["scores"]},
            "labels": len(samples),
            "test": own,
            "beside": beside,
        }

    def _learning_rate(self, cell: Cell) -> dict[str, Any]:
        """Return the learning rate that scores best on the choice samples with the first seed; kept in a file."""
        target, protocol = self.target, self.target.protocol
        first = Cell(cell.arm, cell.mode, cell.fraction, protocol.seeds[0])
        name = f"choice-{first.file}"
        if (known := self._read(name, self._identity(first))) is not None:
            return known
        scores: dict[float, float] = {}
        if len(protocol.learning_rates) > 1:
            samples, steps = target.labelled(first.fraction, first.seed), protocol.choice_steps or protocol.steps
            for rate in protocol.learning_rates:
                module = self._train(first, samples, learning_rate=rate, steps=steps)
                scores[rate] = answer(module, target, target.choice, "train").total[target.metric]
        chosen = probes.best(scores) if scores else protocol.learning_rates[0]
        record = {"chosen": chosen, "scores": {f"{k:g}": v for k, v in scores.items()}}
        self._write(name, {**self._identity(first), **record})
        return record

    def _train(self, cell: Cell, samples: Sequence[Listed], *, learning_rate: float, steps: int) -> Any:
        return fine_tune(
            self.arms[cell.arm],
            self.target,
            samples,
            learning_rate=learning_rate,
            steps=steps,
            seed=cell.seed,
            device=self.device,
        )

    # -------------------------------------------------------------------------------------------------------- files

    def _identity(self, cell: Cell) -> dict[str, Any]:
        arm = self.arms[cell.arm].to_dict()
        return {
            "format": _FORMAT,
            **asdict(cell),
            "made_of": digest(self.target.protocol.fixed(), arm, self.target.manifest.digest),
        }

    def _read(self, name: str, identity: dict[str, Any]) -> dict[str, Any] | None:
        path = self.folder / CELLS / name
        if not path.is_file():
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        if any(record.get(k) != v for k, v in identity.items()):
            raise InputError(
                f"{path}: was measured with other settings, on other shards or from another start; "
                "give another --output, or the settings in its transfer.json"
            )
        return record

    def _write(self, name: str, record: dict[str, Any]) -> None:
        path = self.folder / CELLS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(record, indent=1).encode())


def flat(groups: Sequence[Sequence[Cell]]) -> Iterator[Cell]:
    """Yield every cell."""
    return (cell for group in groups for cell in group)
