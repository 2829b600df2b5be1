"""Arguments that set the plan of a net along D, shared by `platform models show` and `platform plot`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inflate3d.errors import InputError
from inflate3d.inflation.plan import PLAN_NAMES
from inflate3d.inflation.spec import Inflation

PLAN_HELP = "auto, i3d, isotropic, slow or 2d; an explicit plan '{kernels: [1, 3], strides: [1, 2]}'; or a YAML file"

_SIZE_OF_2D = (64, 224, 224)


def add_size_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --input_size, --spacing_mm and --inflation."""
    parser.add_argument(
        "--input_size",
        metavar="D,H,W",
        help="D,H,W: plan auto uses it, and sizes are shown for it (default: as published weights saw, or 64,224,224)",
    )
    parser.add_argument("--spacing_mm", metavar="Z,Y,X", help="z,y,x: plan auto uses it")
    parser.add_argument("--inflation", help="mean, center (default), overshoot or random; published weights: their own")


def read_sizes(args: argparse.Namespace) -> tuple[tuple[int, ...] | None, tuple[float, ...] | None]:
    """Return (D, H, W) and (z, y, x); None where not given."""
    return triple(args.input_size, int, "--input_size"), triple(args.spacing_mm, float, "--spacing_mm")


def read_plan(text: str) -> Any:
    """Return what --plan means: a preset's name, a mapping in YAML or JSON, or the content of such a file."""
    path = Path(text)
    if path.suffix in (".yaml", ".yml", ".json"):
        if not path.is_file():
            raise InputError(f"--plan: no file {text!r}; give a preset ({', '.join(PLAN_NAMES)}) or a file that exists")
        from inflate3d.document import read_document

        return read_document(path)[0]
    if not text.lstrip().startswith("{"):
        return text
    from inflate3d.document import read_value

    value = read_value(text)
    if not isinstance(value, dict):
        raise InputError(
            f"--plan is {text!r}, which is not valid YAML; example: '{{kernels: [1, 3], strides: [1, 2]}}'"
        )
    return value


def planned_net(plan: str, args: argparse.Namespace) -> Any:
    """Return the net that create_model builds from args.name under a --plan and these arguments, on the meta device."""
    size, spacing_mm = read_sizes(args)
    given = {} if args.inflation is None else {"inflation": args.inflation}
    laid = read_plan(plan)
    Inflation.from_dict({"plan": laid, **given})  # refuses invalid plans before torch is imported
    from inflate3d.models.outline import empty_net

    return empty_net(args.name, plan=laid, input_size=size, spacing_mm=spacing_mm, **given)


def shown_size(net: Any, args: argparse.Namespace) -> tuple[int, ...]:
    """Return the (D, H, W) that sizes are shown for: as given, of the weights' own samples, or a common one."""
    contract = getattr(net, "input_spec", None) or {}
    if (given := read_sizes(args)[0]) or not contract.get("sample") or not contract.get("media"):
        return given or _SIZE_OF_2D
    from inflate3d.data.samples.options import options_of

    size = options_of(contract["media"], contract["sample"], where=f"{args.name}: sample").input_size
    return size or _SIZE_OF_2D


def times(values: Sequence[int]) -> str:
    """Return '3 x 7 x 7'."""
    return " x ".join(map(str, values))


def triple(text: str | None, kind: type, option: str) -> tuple[Any, ...] | None:
    """Return the three numbers of an option; None where it was not given."""
    if text is None:
        return None
    try:
        values = tuple(kind(v) for v in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3:
        raise InputError(f"{option} is {text!r}; expected three numbers such as 19,256,256 (D,H,W)")
    return values
