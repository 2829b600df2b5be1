"""Builds every architecture without data and writes the table of architectures: python -m inflate3d.models.survey."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from inflate3d.inflation.mixing import base_name
from inflate3d.models.architectures import COLUMNS, TABLE, Architecture
from inflate3d.models.create import create_model
from inflate3d.models.names import list_models


class _AttentionCalls(TorchFunctionMode):
    """Counts the calls of scaled_dot_product_attention."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def survey(name: str) -> Architecture:
    """Build one net without data, inflate it with plan isotropic, and tell what came out."""
    try:
        with torch.device("meta"):
            return _survey(name)
    except NotImplementedError:  # some of torchvision's look at numbers while they are built
        return _survey(name)


def _survey(name: str) -> Architecture:
    is_timm = not name.startswith("torchvision/")
    net_2d: Any = timm.create_model(name) if is_timm else create_model(name, plan="2d")
    with _AttentionCalls() as calls:
        try:
            headless = is_timm and name.endswith("_enc")  # timm's encoders without a head give feature maps alone
            kinds = list(_kinds(create_model(name, plan="isotropic", features_only=headless)))
        except (RuntimeError, AssertionError) as error:
            print(f"{name}: not inflated: {error}", file=sys.stderr)
            kinds = []
    info = getattr(net_2d, "feature_info", None) or []
    return Architecture(
        name,
        family=families()[name] if is_timm else "torchvision",
        parameters=sum(p.numel() for p in net_2d.parameters()),
        reductions=tuple(dict.fromkeys(entry["reduction"] for entry in getattr(info, "info", info))),
        time=(*kinds, *(["joint"] if calls.count else [])),
    )


@cache
def families() -> dict[str, str]:
    """Return the module of timm that registers each name."""
    return {name: family for family in timm.list_modules() for name in timm.list_models(module=family)}


def _kinds(net: nn.Module) -> Iterator[str]:
    """How the layers of an inflated net look across frames, the strongest first."""
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
    """Write the table; takes minutes."""
    warnings.filterwarnings("ignore")
    versions = f"timm {timm.__version__}, torchvision {torchvision.__version__.partition('+')[0]}"
    lines = [f"# {versions}; written by: make architectures"]
    lines.append("\t".join(COLUMNS))
    names = list_models()
    for count, name in enumerate(names, 1):
        lines.append(survey(name).to_line())
        if count % 100 == 0:
            print(f"{count} of {len(names)}", file=sys.stderr)
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
