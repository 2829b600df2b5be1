"""write_portable: a portable file that is checked against its net before it appears."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inflate3d.errors import InputError
from inflate3d.files import told_when_full
from inflate3d.portable.bundle import METADATA
from inflate3d.portable.formats import FORMATS, PortableFormat, Run, format_named
from inflate3d.portable.part import Part

TOLERANCE = 1e-4
# From the freest on; the first whose file answers as the net does is taken.
_FREE = (("batch", "depth"), ("batch",), ())
_FAILURES = (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, IndexError, KeyError)


class _Differs(Exception):
    """A file answers otherwise than its net."""


@dataclass(frozen=True)
class Written:
    """What was written. free: the axes that take other sizes. difference: from the net, see write_portable."""

    path: Path
    free: tuple[str, ...]
    difference: float
    facts: dict[str, Any]


@torch.no_grad()
def write_portable(part: Part, path: str | Path, *, format: str) -> Written:
    """Write a part as "onnx", "torch-export" or "torchscript", a file, or as "monai-bundle", a folder.

    The batch and the depth are left free where the file then answers as the net does, on random clips of several sizes;
    depth as multiples of the net's stride, two of them at the least. The difference is the largest one from the net in
    float64 (in float32 its fast ways round more than a file does), over the larger of 1 and the net's largest answer.
    It appears by a rename. InputError where it cannot be made, where the difference is above 1e-4, or where a folder
    holds something else.
    """
    writer, path = format_named(format), Path(path)
    if not path.parent.is_dir():
        raise InputError(f"--output: no folder {str(path.parent)!r}; make it first")
    _refuse_other(path, writer, format)
    temporary = path.with_name(f".tmp-{path.name}")
    reason = ""
    try:
        for free in _FREE:
            if "depth" in free and not _may_be_deeper(part):
                continue
            facts = {**part.facts, "shape": shape_of(part, free)}
            _remove(temporary)
            try:
                with told_when_full(path.parent, "Free some and run the same command again"), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of PyTorch about itself
                    writer.write(part, temporary, free=free, facts=facts)
                    difference = _check(part, writer, temporary, free)
            except InputError:
                raise
            except (*_FAILURES, _Differs) as fault:
                reason = reason or f"{type(fault).__name__}: {str(fault).strip().splitlines()[0][:200]}"
                continue
            _remove(path)
            temporary.replace(path)
            return Written(path, free, difference, facts)
    finally:
        _remove(temporary)
    others = ", ".join(name for name in FORMATS if name != format)
    raise InputError(f"{part.facts.get('model')}: cannot leave as {format} ({reason}). Other formats: {others}")


def shape_of(part: Part, free: tuple[str, ...]) -> list[int | str]:
    """Return the input's (B, C, D, H, W): a number where it is fixed, else what it is called, such as "32*depth"."""
    step = part.depth_step
    depth = "depth" if step == 1 else f"{step}*depth"
    # A file without a free batch takes the two clips that it was made with.
    batch: int | str = "batch" if "batch" in free else 2
    return [batch, part.channels, depth if "depth" in free else part.size[0], *part.size[1:]]


def _refuse_other(path: Path, writer: PortableFormat, format: str) -> None:
    """InputError where a file would take a folder's place or the reverse, or a folder is no earlier bundle."""
    if path.exists() and path.is_dir() is not writer.is_folder:
        kinds = ("file", "folder") if writer.is_folder else ("folder", "file")
        raise InputError(f"--output: {path} is a {kinds[0]}; --format {format} writes a {kinds[1]}")
    if path.is_dir() and any(path.iterdir()) and not (path / METADATA).is_file():
        raise InputError(f"--output: {path} holds something else; give an empty folder, or one that is not there yet")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _may_be_deeper(part: Part) -> bool:
    return part.depth_step is not None and part.size[0] % part.depth_step == 0 and part.size[0] >= 2 * part.depth_step


def _check(part: Part, writer: PortableFormat, path: Path, free: tuple[str, ...]) -> float:
    """Return the largest difference from the net. _Differs where it is above the tolerance."""
    run, exact = writer.load(path), copy.deepcopy(part.net).double()
    worst = max(_difference(exact, run, clip) for clip in _clips(part, free))
    if not worst <= TOLERANCE:
        raise _Differs(f"its answer differs from the net's by {worst:.1g}; allowed: {TOLERANCE:.0e}")
    return worst


def _clips(part: Part, free: tuple[str, ...]) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    depth, step = part.size[0], part.depth_step or 0
    sizes = [(2, depth)]
    if "batch" in free:
        sizes += [(1, depth), (3, depth)]
    if "depth" in free:
        sizes += [(1, depth + step)]
    for batch, frames in sizes:
        yield torch.randn(batch, part.channels, frames, *part.size[1:], generator=generator)


def _difference(exact: nn.Module, run: Run, clip: Tensor) -> float:
    expected, got = exact(clip.double()), run(clip)
    if got.shape != expected.shape:
        raise _Differs(f"it gives shape {tuple(got.shape)} where the net gives {tuple(expected.shape)}")
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1))
