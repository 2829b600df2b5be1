"""docs/pass-table.md: the rows of the pass table, kept in a file at once, so that a stopped run continues."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import timm
import torch
from rich.console import Console
from rich.progress import track

from inflate3d.models.architectures import counts, smallest_of_each_family, table, versions
from inflate3d.reports.pass_table import (
    CASES,
    DEPTH,
    LEAST_ORDER,
    MOST_FP32,
    MOST_FP64,
    MOST_ROUNDINGS,
    Row,
    measure_all,
)

I3D_NETS = (
    *("torchvision/googlenet", "torchvision/inception_v3", "torchvision/resnet18", "torchvision/resnet50"),
    *("torchvision/densenet121", "torchvision/vgg11_bn", "torchvision/vgg16"),
)
"""The nets that the I3D literature inflates."""

HEAD = """# Pass table

Written by `make pass-table` ({versions}); do not edit.

The smallest member of each of timm's families, and the nets that the I3D literature inflates, with random weights
(also where training starts at zero), on clips of {depth} frames.

- **fp64**, **fp32**: largest difference from the 2D net's logits and features on clips that repeat one image, relative
  to the largest value. **2D fp32**: the same for the 2D net alone, float32 against float64; a net whose weights amplify
  rounding does so before it is inflated. Allowed: {fp64:.0e} in fp64; in fp32 {fp32:.0e} or {roundings} times 2D fp32.
  Blank: not measured.
- **order**: change of the output when the frames of a clip are reordered, relative to another clip's output (fp64;
  a clip of twice the total stride and one where {depth} frames fall into one tube). Needed: {order:.0e}; rounding
  changes it by about 1e-15. Center taps do not look across frames before training; there only strides make a
  difference. `slow` has kernels only at /16 and /32; finer nets cannot see order under it, so it is not counted.
- **D**: frames at the deepest map; {depth} at the input. **levels**: maps of `features_only`, each equal to the 2D
  net's on static clips and with the D that `reduction_dhw` states; "-": timm offers none for this net.
- **compile**: `torch.compile(fullgraph=True)`; **export**: `torch.export`, both against eager. Tried once per net.

"""


def load_rows(file: Path) -> list[Row]:
    """Return the rows of a file of JSON lines, the last of each net and case; none if there is no file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    rows = [Row(**json.loads(line)) for line in lines]
    return list({(row.name, row.taps, row.plan): row for row in rows}.values())


def append_row(file: Path, row: Row) -> None:
    """Add a row to a file of JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(row)) + "\n")


def render(rows: Iterable[Row], names: Iterable[str] = ()) -> str:
    """Return the page; names: the nets to measure; rows may be missing."""
    rows = list(rows)
    wanted = len(CASES) * len({row.name for row in rows}.union(names))
    made_with = f"torch {torch.__version__.partition('+')[0]}, timm {timm.__version__}"
    limits = {"fp64": MOST_FP64, "fp32": MOST_FP32, "roundings": MOST_ROUNDINGS, "order": LEAST_ORDER}
    head = HEAD.format(versions=made_with, depth=DEPTH, **limits)
    return head + "\n".join(["## Totals", "", *_sums(rows, wanted), "", "## Rows", "", *_lines(rows)]) + "\n"


def _sums(rows: list[Row], wanted: int) -> Iterator[str]:
    families = {row.name: _family(row.name) for row in rows}
    for where, names in (
        ("timm's families", [n for n, f in families.items() if f != "torchvision"]),
        ("torchvision's nets", [n for n, f in families.items() if f == "torchvision"]),
    ):
        of = [row for row in rows if row.name in names]

        def count(holds: Callable[[Row], bool], of: list[Row] = of, names: list[str] = names) -> int:
            return sum(all(holds(r) for r in of if r.name == n) for n in names)

        full = [row for row in of if row.compiles]
        in_all = sum(sum(r.name == n for r in of) == len(CASES) for n in names)
        yield f"- {where}: {len(names)}, of which {in_all} in every case;"
        yield f"  every row passes: {count(lambda r: not r.faults)};"
        yield f"  exact in fp64: {count(lambda r: r.fp64 <= MOST_FP64)};"
        yield f"  exact in fp32: {count(lambda r: r.is_exact_in_fp32)};"
        yield f"  order-sensitive: {count(lambda r: r.plan == 'slow' or r.order >= LEAST_ORDER)};"
        yield f"  temporal stride: {count(lambda r: r.plan != 'isotropic' or 0 < r.depths < DEPTH)};"
        yield f"  feature maps: {sum(r.levels > 0 for r in full)}, not offered: {sum(r.levels == 0 for r in full)};"
        yield f"  compiles: {sum(r.compiles == 'yes' for r in full)}; exports: {sum(r.exports == 'yes' for r in full)}."
    if len(rows) < wanted:
        yield f"- {wanted - len(rows)} of {wanted} rows are missing: the run is not finished."
    yield f"- Every name, built and run without data ({versions()}){': ' * bool(counts())}{counts()}."


def _lines(rows: list[Row]) -> Iterator[str]:
    yield "| family | net | taps | plan | fp64 | fp32 | 2D fp32 | order | D | levels | compile | export | |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for row in sorted(rows, key=lambda r: (_family(r.name) == "torchvision", _family(r.name), r.name)):
        levels = {-1: "", 0: "-"}.get(row.levels, str(row.levels))
        numbers = " | ".join("" if x != x else f"{x:.0e}" for x in (row.fp64, row.fp32, row.fp32_2d, row.order))
        cells = (_family(row.name), row.name, row.taps, row.plan, numbers, str(row.depths), levels)
        yield f"| {' | '.join(cells)} | {row.compiles} | {row.exports} | {'; '.join(row.faults) or 'pass'} |"


def _family(name: str) -> str:
    known = table().get(name)
    return known.family if known else "torchvision" if name.startswith("torchvision/") else "timm"


def main() -> None:
    """Measure the rows that the file lacks, then write the page: python -m inflate3d.reports.pass_report [NAME ...]."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "names", nargs="*", help="default: the smallest of each family and the nets that I3D papers inflate"
    )
    parser.add_argument("--rows", type=Path, default=Path("build/pass-table.jsonl"))
    parser.add_argument("--output", type=Path, default=Path("docs/pass-table.md"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    known = table()
    names = args.names or [*(row.name for row in smallest_of_each_family()), *I3D_NETS]
    names.sort(key=lambda name: known[name].parameters if name in known else 0)  # the slowest come last
    for name in track(names, description="architectures", console=Console(stderr=True)):
        done = {(row.name, row.taps, row.plan) for row in load_rows(args.rows)}
        cases = [case for case in CASES if (name, case.taps, case.plan) not in done]
        for row in measure_all(name, cases):
            append_row(args.rows, row)
    rows = [row for row in load_rows(args.rows) if row.name in names]
    args.output.write_text(render(rows, names), encoding="utf-8")
    failed = [f"{r.name} {r.taps} {r.plan}: {'; '.join(r.faults)}" for r in rows if r.faults]
    print(*failed, f"{len(rows) - len(failed)} of {len(rows)} rows pass", sep="\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
