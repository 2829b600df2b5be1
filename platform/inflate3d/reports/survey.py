"""Builds and runs every architecture without data, in every way that a caller can request, and writes the table.

python -m inflate3d.reports.survey: one process per core. Each result is kept in a file at once, so that a stopped run
continues.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
import torchvision
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.overrides import TorchFunctionMode

from inflate3d.contracts import zoo_names
from inflate3d.inflation.mixing import base_name
from inflate3d.models.architectures import COLUMNS, TABLE, Architecture
from inflate3d.models.create import create_model
from inflate3d.models.names import list_models

WAYS: tuple[dict[str, Any], ...] = ({"features_only": True, "in_chans": 1}, {"in_chans": 4, "num_classes": 0})
"""Options tried besides plan isotropic alone; only in_chans 1 if the 2D net offers no features_only."""

_NOT_BUILT = (RuntimeError, ValueError, AssertionError, AttributeError, KeyError, TypeError)


class Survey(NamedTuple):
    """The result of one name: its line of the table, whether the 2D net offers features_only, and the failures."""

    line: Architecture
    offers_features: bool
    failures: list[str]

    def to_json(self) -> str:
        """Return a line of the results file."""
        return json.dumps({**self._asdict(), "line": self.line.to_line()})

    @classmethod
    def from_json(cls, text: str) -> Survey:
        """Read such a line."""
        found = json.loads(text)
        return cls(Architecture.from_line(found["line"]), found["offers_features"], found["failures"])


class _AttentionCalls(TorchFunctionMode):
    """Counts the calls of scaled_dot_product_attention."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def survey(name: str) -> Survey:
    """Build one net without data, inflate it with plan isotropic, and return the result.

    create_model runs the net on clips whose D differs from H and W, so nothing is run again here.
    """
    try:
        with torch.device("meta"):
            found = _survey(name)
        # gemma4 with features_only reads a number from a tensor, which fails without data.
        return _survey(name) if found.failures and not name.startswith("torchvision/") else found
    except NotImplementedError:  # some of torchvision's nets read numbers while they are built
        return _survey(name)


def _survey(name: str) -> Survey:
    is_timm = not name.startswith("torchvision/")
    net_2d: Any = timm.create_model(name) if is_timm else create_model(name, plan="2d")
    with _AttentionCalls() as calls:
        net, failure = _tried(name)
    failures = [failure] if net is None else []
    offers_features = True
    for way in WAYS:
        net_of_way, failure = _tried(name, **way)
        if net_of_way is None and "features_only" in way and not _offers_features(name, net_2d):
            offers_features = False
            net_of_way, failure = _tried(name, in_chans=way["in_chans"])
        if net_of_way is None:
            failures.append(failure)
    line = Architecture(
        name,
        family=families()[name] if is_timm else "torchvision",
        parameters=sum(p.numel() for p in net_2d.parameters()),
        reductions=tuple(dict.fromkeys(entry["reduction"] for entry in _levels(net_2d))),
        time=(*(_kinds(net) if net else []), *(["joint"] if calls.count else [])),
    )
    return Survey(line, offers_features, failures)


def _tried(name: str, **way: Any) -> tuple[nn.Module | None, str]:
    """Return an inflated net, or None and the error."""
    headless = name.endswith("_enc")  # timm's encoders without a head return only feature maps
    try:
        return create_model(name, plan="isotropic", **{"features_only": headless, **way}), ""
    except _NOT_BUILT as error:
        told = ", ".join(f"{key}={value}" for key, value in way.items()) or "unchanged"
        return None, f"{name} ({told}): {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _levels(net_2d: nn.Module) -> list[dict[str, Any]]:
    """What a 2D net states about its maps; nothing if it has only tokens, as torchvision's ViTs."""
    info: Any = getattr(net_2d, "feature_info", None) or []
    return getattr(info, "info", info)


def _offers_features(name: str, net_2d: nn.Module) -> bool:
    """Whether the 2D net comes with features_only."""
    if name.startswith("torchvision/"):
        return bool(_levels(net_2d))
    try:
        timm.create_model(name, features_only=True)
        return True
    except _NOT_BUILT:
        return False


@cache
def families() -> dict[str, str]:
    """Return the module of timm that registers each name."""
    return {name: family for family in timm.list_modules() for name in timm.list_models(module=family)}


def _kinds(net: nn.Module) -> Iterator[str]:
    """How the layers of an inflated net look across frames, strongest first."""
    layers = [m for m in net.modules() if getattr(m, "depth_kernel", 1) > 1]
    tiles = [m for m in layers if isinstance(m, nn.Conv2d) and m.kernel_size[0] == m.stride[0] > 1]
    pointwise = [m for m in layers if "Linear" in base_name(m) or getattr(m, "kernel_size", 0) == (1, 1)]
    if any(isinstance(m, nn.Conv2d) and m not in [*tiles, *pointwise] for m in layers):
        yield "conv"
    if pointwise:
        yield "linear"
    if layers and layers == tiles:
        yield "tubes"


def main() -> None:
    """Survey the names that the file lacks, then write the table: python -m inflate3d.reports.survey; takes hours."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rows", type=Path, default=Path("build/architectures.jsonl"))
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: one per core")
    args = parser.parse_args()
    names = [name for name in list_models() if name not in zoo_names()]
    found = load_rows(args.rows)
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    waiting = [name for name in names if name not in found]
    # Not fork: torch has threads. A child ends after some names, because torch keeps some memory of each net.
    pool = get_context("spawn").Pool(args.processes, initializer=_quiet, maxtasksperchild=50)
    with pool, args.rows.open("a", encoding="utf-8") as stream:
        done = pool.imap_unordered(survey, waiting)
        for row in track(done, description="architectures", total=len(waiting), console=Console(stderr=True)):
            found[row.line.name] = row
            stream.write(row.to_json() + "\n")
            stream.flush()
    rows = [found[name] for name in names]
    TABLE.write_text(render(rows), encoding="utf-8")
    print(*(failure for row in rows for failure in row.failures), sep="\n")
    sys.exit(any(row.failures for row in rows))


def load_rows(file: Path) -> dict[str, Survey]:
    """Return the content of a file by name; empty if there is no file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {row.line.name: row for row in map(Survey.from_json, lines)}


def _quiet() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)


def render(found: list[Survey]) -> str:
    """Return the table; its first line states versions and counts."""
    versions = f"timm {timm.__version__}, torchvision {torchvision.__version__.partition('+')[0]}"
    failures = sum(len(each.failures) for each in found)
    without_maps = sum(not each.offers_features for each in found)
    counts = (
        f"{sum(not each.failures for each in found)} of {len(found)} names build and run, unchanged, with "
        f"features_only (which {without_maps} do not offer in 2D) and in_chans 1, with in_chans 4 and "
        f"num_classes 0: {failures} failures"
    )
    lines = [f"# {versions}; {counts}; written by: make architectures", "\t".join(COLUMNS)]
    return "\n".join([*lines, *(each.line.to_line() for each in found)]) + "\n"


if __name__ == "__main__":
    main()
