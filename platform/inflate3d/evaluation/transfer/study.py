"""run_transfer: models against their baselines on one target, from shards to transfer.json and the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from inflate3d.data.shards.parts import Part
from inflate3d.errors import InputError
from inflate3d.evaluation.transfer.arms import Arm
from inflate3d.evaluation.transfer.build import build_module
from inflate3d.evaluation.transfer.cells import Cell, CellRunner, flat, groups_of
from inflate3d.evaluation.transfer.report import render_report
from inflate3d.evaluation.transfer.summary import published_results, summarise
from inflate3d.evaluation.transfer.target import Target
from inflate3d.files import write_whole
from inflate3d.training.run.folder import git_commit
from inflate3d.training.run.lock import LOCK, one_writer

TRANSFER, RESULTS, REPORT = "transfer.json", "results.json", "report.html"  # publishing reads the last two
FORMAT = "inflate3d-transfer/1"
_PACKAGES = ("inflate3d", "torch", "timm", "torchmetrics", "numpy")

Report = Callable[[Cell, dict[str, Any], int, int], None]


def run_transfer(
    arms: Sequence[Arm],
    target: Target,
    output: str | Path,
    *,
    part: Part | None = None,
    device: str = "cpu",
    report: Report | None = None,
    is_over: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run the unfinished cells, write the result of all finished ones, and return it.

    part: this process's share of the cells, for many machines over one output folder; it writes only finished cells,
    and a run without `part` then joins them. report: called with each new cell, its record, and the
    progress of this process. is_over: asked before each cell, whether to leave the rest to a later call. InputError if
    another process is at the same work there.
    """
    output = Path(output)
    runner = CellRunner(arms, target, output, device=device)
    groups = groups_of(arms, target)
    mine = groups if part is None else groups[part.number - 1 :: part.count]
    lock = LOCK if part is None else f"writer-{part.number}-of-{part.count}.lock"
    with one_writer(output, name=lock, other_folder="--output"):
        left = [cell for cell in flat(mine) if runner.read(cell) is None]
        for arm in arms:  # what cannot begin is told before hours of others
            if any(cell.arm == arm.name for cell in left):
                build_module(arm, target, seed=target.protocol.seeds[0])
        _run_cells(runner, left, report, is_over)
        found = {cell: record for cell in flat(groups) if (record := runner.read(cell)) is not None}
        result = _result(arms, target, found, of=sum(map(len, groups)), device=device)
        if part is None:
            write_result(result, output)
    return result


def _run_cells(runner: CellRunner, cells: Sequence[Cell], report: Report | None, is_over: Callable[[], bool]) -> None:
    done = 0

    def count(cell: Cell, record: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        if report is not None:
            report(cell, record, done, len(cells))

    for cell in cells:
        if is_over():
            break
        runner.run([cell], count)


def _result(
    arms: Sequence[Arm], target: Target, found: Mapping[Cell, dict[str, Any]], *, of: int, device: str
) -> dict[str, Any]:
    """Return what transfer.json holds, from the cells that are finished; `of` is the number of all."""
    return {
        "format": FORMAT,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "dataset": {"card": target.card.to_dict(), "digest": target.manifest.digest},
        "metric": target.metric,
        "protocol": target.protocol.to_dict(),
        "arms": [arm.to_dict() for arm in arms],
        "splits": target.splits(),
        "cells": {"finished": len(found), "of": of},
        "versions": {name: version(name) for name in _PACKAGES} | {"git": git_commit()},
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "rows": summarise(found, target.metric),
    }


def printed(metric: str) -> Report:
    """Return a report that prints one line per new cell."""

    def report(cell: Cell, record: dict[str, Any], done: int, of: int) -> None:
        value = record["test"]["total"][metric]
        shown = "no number" if value is None else f"{value:.3f}"
        print(f"{done}/{of}  {cell}: {metric} {shown}, {record['seconds']:.0f} s", flush=True)

    return report


def write_result(result: dict[str, Any], output: str | Path) -> None:
    """Write transfer.json, results.json, the plots and report.html, each complete or not at all."""
    output = Path(output)
    write_whole(output / TRANSFER, json.dumps(result, indent=1).encode())
    results = published_results(result["rows"], result["protocol"]["dataset"])
    write_whole(output / RESULTS, json.dumps(results, indent=1).encode())
    write_page(result, output)


def read_result(output: str | Path) -> dict[str, Any]:
    """Return what transfer.json in a folder holds. InputError if it is damaged or of another version."""
    path = Path(output) / TRANSFER
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if result["format"] != FORMAT:
            raise ValueError(f"format is {result['format']!r}; this version reads {FORMAT!r}")
    except (ValueError, LookupError, TypeError) as fault:
        raise InputError(f"{path}: damaged: {fault}. Run the same `platform transfer` again") from fault
    return result


def write_page(result: Mapping[str, Any], output: str | Path) -> None:
    """Write the plots and report.html, each complete or not at all."""
    output = Path(output)
    page, plots = render_report(result)
    for name, png in plots.items():
        write_whole(output / name, png)
    write_whole(output / REPORT, page.encode())
