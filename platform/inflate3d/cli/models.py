"""`platform models list|show`: which 2D nets there are, and how a plan lays one along D."""

from __future__ import annotations

import argparse
from fnmatch import fnmatch
from typing import Any

from inflate3d.cli.table import print_table
from inflate3d.cli.timm_names import architectures, check_model_name
from inflate3d.errors import InputError


def add_parser(subparsers: Any) -> None:
    """Add `platform models`."""
    parser = subparsers.add_parser("models", help="list the 2D nets, and show how one becomes 3D")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    listing = commands.add_parser("list", help="names that create_model takes")
    listing.add_argument("filter", nargs="?", default="*", metavar="WILDCARD", help="such as '*resnet*'")
    listing.set_defaults(run=_list)
    show = commands.add_parser("show", help="levels of one net under a plan: kernels, strides, sizes")
    show.add_argument("name", metavar="NAME")
    show.add_argument("--plan", default="auto", help="auto, i3d, isotropic, slow or 2d")
    show.add_argument("--input_size", metavar="D,H,W", help="what plan auto looks at, and whose sizes are shown")
    show.add_argument("--spacing_mm", metavar="Z,Y,X", help="what plan auto looks at")
    show.add_argument("--inflation", default="center", help="mean, center, overshoot or random")
    show.set_defaults(run=_show)


def _list(args: argparse.Namespace) -> None:
    names = [*architectures("timm"), *(f"torchvision/{n}" for n in architectures("torchvision"))]
    found = sorted(n for n in names if fnmatch(n, args.filter))
    if not found:
        raise InputError(f"platform models list: no name matches {args.filter!r}; try '*{args.filter.strip('*')}*'")
    print("\n".join(found))


def _show(args: argparse.Namespace) -> None:
    size = _triple(args.input_size, int, "--input_size")
    spacing = _triple(args.spacing_mm, float, "--spacing_mm")
    check_model_name(args.name, where="platform models show")

    import logging

    from inflate3d.models import create_model

    logging.getLogger("inflate3d").setLevel(logging.WARNING)
    net: Any = create_model(
        args.name, plan=args.plan, input_size=size, spacing_mm=spacing, inflation=args.inflation, features_only=True
    )
    plan, info = net.plan, net.feature_info
    rows: list[list[object]] = []
    above = 1
    for channels, reduction, spatial in zip(info.channels(), info.reduction_dhw(), info.reduction(), strict=True):
        level = spatial.bit_length() - 1
        kernel = plan.kernels[min(level, len(plan.kernels) - 1)]
        stride, above = reduction[0] // above, reduction[0]
        row = [level, "as spatial" if kernel is None else kernel, stride, "x".join(map(str, reduction)), channels]
        if size:
            row.append(" x ".join(str(-(-n // r)) for n, r in zip(size, reduction, strict=True)))
        rows.append(row)
    parameters = sum(p.numel() for p in net.parameters())
    print(
        f"{args.name}, plan {plan.name}, taps {args.inflation}: {parameters / 1e6:.1f} M parameters to the last level"
    )
    header = ["level", "kernel D", "stride D", "reduction DxHxW", "channels", *(["map D x H x W"] if size else [])]
    print_table(header, rows)


def _triple(text: str | None, kind: type, option: str) -> tuple[Any, ...] | None:
    if text is None:
        return None
    try:
        values = tuple(kind(v) for v in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3:
        raise InputError(f"{option} is {text!r}; expected three numbers such as 19,256,256 (D,H,W)")
    return values
