"""A layout: what tracing and checking a 2D net found, so that nets of the same making need not be looked at again.

It holds no weight and no number of a weight: where layers stand, which of them stride time or hold their frames, and
how the head meets time. It is found by `fingerprint`, which covers all that it hangs on, and a net that was laid by it
must show the `outline` of the one that was traced and checked.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from inflate3d.inflation.head import HeadLayout
from inflate3d.inflation.layers import AtRate
from inflate3d.inflation.mixing import parts_of
from inflate3d.inflation.spec import Inflation
from inflate3d.inflation.steps import Step, Strides
from inflate3d.inflation.trace import LayerTrace, Trace

_RECORD = [f.name for f in fields(LayerTrace) if f.name != "answers"]
_OUTLINED = ("depth_kernel", "depth_stride", "tube", "rate", "rate_in", "hold", "channels_last")
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Layout:
    """records: a row of _RECORD a module. image: (C, H, W) traced on; channels: those that the net takes.

    is_list: the net gives a list of maps. steps: a row of Step each. rates: (rate, rate_in) of modules that have one.
    """

    records: list[list[Any]]
    image: tuple[int, int, int]
    channels: int
    head: HeadLayout | None
    is_list: bool
    steps: list[list[Any]]
    holds: list[str]
    rates: dict[str, list[int]]
    outline: str

    @classmethod
    def of(cls, net: Any, trace: Trace, strides: Strides, head: HeadLayout | None, image: Sequence[int]) -> Layout:
        """Read the layout of a net that was traced, laid and checked."""
        records = [[getattr(record, name) for name in _RECORD] for record in trace.values()]
        found = {name: [getattr(m, "rate", 1), getattr(m, "rate_in", 1)] for name, m in net.named_modules()}
        rates = {name: pair for name, pair in found.items() if pair != [1, 1]}
        steps = [[s.name, s.level_in, s.level_out] for s in strides.steps.values()]
        channels, height, width = image
        is_list = isinstance(trace.output, list)
        return cls(
            records,
            (channels, height, width),
            net.in_chans_expected,
            head,
            is_list,
            steps,
            list(strides.holds),
            rates,
            outline(net),
        )

    def trace(self) -> Trace:
        """Return the trace without answers."""
        rows = [dict(zip(_RECORD, record, strict=True)) for record in self.records]
        return Trace({row["name"]: LayerTrace(**row) for row in rows})

    def apply(self, net: nn.Module, strides: Strides) -> None:
        """Put the strides in that the check had settled."""
        strides.steps = {step[0]: Step(*step) for step in self.steps}
        strides.holds = list(self.holds)
        strides.apply()
        for name, (rate, rate_in) in self.rates.items():
            module: Any = net.get_submodule(name)
            if hasattr(module, "rate"):
                module.rate = rate
            if isinstance(module, AtRate):
                module.rate_in = rate_in

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Layout:
        """Read `to_dict` back. TypeError or KeyError where it is something else."""
        head = values.pop("head")
        if head is not None:
            head = HeadLayout(**{**head, "shape": head["shape"] and tuple(head["shape"])})
        return cls(**{**values, "image": tuple(values["image"]), "head": head})


class Layouts(Protocol):
    """Where layouts are kept, by the fingerprint of what they are for."""

    def find(self, fingerprint: str) -> Layout | None:
        """Return the layout that was kept, None where there is none."""

    def keep(self, fingerprint: str, layout: Layout) -> None:
        """Keep one."""


def fingerprint(net: nn.Module, inflation: Inflation, *, sizes: Sequence[tuple[int, int]], channels: int) -> str:
    """Return the sha256 of all that the layout of a 2D net hangs on.

    That is: every module with its class and plain attributes, every tensor's shape and type, the source files of these
    classes and of this package's inflation, the versions of torch and timm, the inflation, and what it is traced on.
    """
    # Text alone: a list of thousands of tuples sets off the garbage collector, which takes longer than all else here.
    modules = "".join(f"{name} {_class_of(module)} {_plain(vars(module))}" for name, module in net.named_modules())
    tensors = "".join(
        f"{name} {list(t.shape)} {t.dtype} {t.device.type}" for name, t in net.state_dict(keep_vars=True).items()
    )
    sources = "".join(sorted({_source(part.__module__) for m in net.modules() for part in type(m).__mro__[:-2]}))
    made_of = f"{modules}{tensors}{sources}{_own_sources()}{inflation.to_dict()}{list(sizes)}{channels}"
    return hashlib.sha256(made_of.encode()).hexdigest()


def outline(net: Any) -> str:
    """Return the sha256 of what inflation made of each module, and of the net's own facts."""
    modules = "".join(
        f"{name} {[part.__name__ for part in parts_of(type(m))]} {_outlined(m)}" for name, m in net.named_modules()
    )
    shapes = "".join(f"{name} {list(p.shape)}" for name, p in net.named_parameters())
    own = [net.min_depth, net.depth_reduction, net.held, net.in_chans_expected, net.takes_rgb_alone, net.trace_size]
    return hashlib.sha256(f"{modules}{shapes}{own}{net.head_layout}".encode()).hexdigest()


def _outlined(module: nn.Module) -> list[Any]:
    own, cls = vars(module), type(module)
    return [own.get(word, getattr(cls, word, None)) for word in _OUTLINED]


def _class_of(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _plain(attributes: dict[str, Any]) -> str:
    """Return what can be written down: numbers, words, tuples of them, and the names of functions and classes."""
    found = ""
    for name, value in attributes.items():
        if name == "training" or name.startswith("_"):
            continue
        if isinstance(value, _PLAIN) or (isinstance(value, tuple | list) and all(isinstance(v, _PLAIN) for v in value)):
            found += f"{name}={value!r};"
        elif (qualified := getattr(value, "__qualname__", None)) is not None:
            found += f"{name}={qualified};"
    return found


@cache
def _source(module: str) -> str:
    """Return a module's name and the hash of its file."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return f"{module} {hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else ''}"


@cache
def _own_sources() -> str:
    """Return the hash of this package's files, and the versions of those that the 2D net comes from."""
    digest = hashlib.sha256(json.dumps([torch.__version__, _version("timm"), _version("torchvision")]).encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
