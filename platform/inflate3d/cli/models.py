"""`platform models list|show`: the available 2D nets, and what a plan makes of one along D."""

from __future__ import annotations

import argparse
from fnmatch import fnmatch
from typing import Any

from inflate3d.cli.plan_arguments import PLAN_HELP, add_size_arguments, planned_net, shown_size, times
from inflate3d.cli.table import print_table
from inflate3d.cli.timm_names import architectures, check_model_name
from inflate3d.contracts import AbstractZoo, ZooNet, find_zoo, zoo_names
from inflate3d.errors import InputError
from inflate3d.models.architectures import Architecture, table, versions


def add_parser(subparsers: Any) -> None:
    """Add `platform models`."""
    parser = subparsers.add_parser(
        "models", help="list the 2D nets and the zoos of 3D ones, and show one level by level"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    listing = commands.add_parser(
        "list",
        help="names that create_model accepts, with parameters, levels and how time is mixed",
        description=_LIST,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    listing.add_argument("filter", nargs="?", default="*", metavar="WILDCARD", help="such as '*vit*'")
    listing.add_argument("--names", action="store_true", help="only names, one per line, for scripts")
    listing.add_argument("--published", action="store_true", help="published 3D weights, by their short names")
    listing.set_defaults(run=_list)
    show = commands.add_parser("show", help="levels of one net under a plan: kernels, strides, sizes, parameters")
    show.add_argument("name", metavar="NAME")
    show.add_argument("--plan", default="auto", help=PLAN_HELP)
    add_size_arguments(show)
    show.set_defaults(run=_show)


_LIST = """\
ZOO/NAME, but for torchvision's image nets, are 3D nets with 3D weights of other publishers: platform models show NAME.
levels: by how much H and W are smaller than in the image, at each level.
time: what looks across frames once a net is inflated (conv: spatial convolutions; linear: pointwise layers; tubes: the
patch embed only); joint: with attention="joint" its attention does so as well.
"""


def _list_published(filter: str) -> None:
    from inflate3d.models.publication.index import GROUP, VARIABLE, entries

    rows = [
        (e.name, e.licence, {True: "yes", False: "no", None: "unknown"}[e.commercial_use], e.title, e.source)
        for e in entries().values()
        if fnmatch(e.name, filter)
    ]
    if rows:
        print_table(["name", "licence", "commercial use", "what it is", "where"], sorted(rows))
    else:
        print(
            f"no index lists any; add names by {VARIABLE}=FILE.json or an entry point of {GROUP} (docs/publishing.md)"
        )


def _list(args: argparse.Namespace) -> None:
    if args.published:
        _list_published(args.filter)
        return
    names = [*architectures("timm"), *(f"torchvision/{n}" for n in architectures("torchvision"))]
    known, zoos = table(), zoo_names()
    found = sorted(n for n in {*names, *known, *zoos} if fnmatch(n, args.filter))
    if not found:
        raise InputError(f"platform models list: no name matches {args.filter!r}; try '*{args.filter.strip('*')}*'")
    if args.names:
        print("\n".join(found))
        return
    facts: dict[str, Architecture | ZooNet] = {**known, **zoos}
    rows = [(n, *(_facts(facts[n]) if n in facts else ("?", "?", "?"))) for n in found]
    print_table(["name", "parameters", "levels", "time"], rows)
    if unknown := [n for n in found if n not in facts]:
        print(f"?: not in the table ({versions()}); try platform models show {unknown[0]}")


def _facts(row: Architecture | ZooNet) -> tuple[str, str, str]:
    time = "3D weights" if isinstance(row, ZooNet) else " ".join(row.time)
    return f"{row.parameters / 1e6:.1f} M", " ".join(map(str, row.reductions)) or "-", time or "-"


def _show(args: argparse.Namespace) -> None:
    check_model_name(args.name, where="platform models show")
    net = planned_net(args.plan, args)
    shown: Any = shown_size(net, args)

    from inflate3d.models.outline import outline_of

    levels = outline_of(net, shown)
    total = sum(level.parameters for level in levels)
    print(f"{args.name}: {total / 1e6:.1f} M parameters, input {times(shown)} (D x H x W)")
    print(net.net_spec.inflation)
    rows = [
        (
            row.level,
            times(row.kernel) if row.kernel else "-",
            times(row.stride),
            times(row.size),
            row.channels,
            f"{row.parameters / 1e6:.2f} M",
        )
        for row in levels
    ]
    print_table(["level", "kernel D x H x W", "stride D x H x W", "output D x H x W", "channels", "parameters"], rows)
    if (found := find_zoo(args.name)) is not None:
        _show_zoo(*found)


def _show_zoo(zoo: AbstractZoo, name: str) -> None:
    """Print what the 3D weights are, what they expect, where they lie and what they may be used for."""
    given = zoo.nets[name].input or zoo.input
    spacing = " x ".join(map(str, given.spacing_mm)) + " mm" if given.spacing_mm else "not stated"
    bound = f"; trained on {zoo.trained_on['name']} ({zoo.trained_on['licence']})" if zoo.trained_on else ""
    print(f"weights: {zoo.title}; licence {zoo.licence}{bound}")
    print(f"input: {', '.join(given.channels)}; spacing (z, y, x) {spacing}; {given.intensity}")
    print(f"from: {zoo.nets[name].weights or 'a package; ' + str(zoo.source)}")
    print(f"cite: {zoo.citation}")
