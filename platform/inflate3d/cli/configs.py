"""`platform configs list|show`: the packaged configs, found by bare name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from inflate3d.cli.config import find_config, packaged_configs
from inflate3d.cli.table import print_table


def add_parser(subparsers: Any) -> None:
    """Add `platform configs`."""
    parser = subparsers.add_parser("configs", help="list and show the packaged configs")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    commands.add_parser("list", help="every packaged config").set_defaults(run=_list)
    show = commands.add_parser("show", help="print one, to read or copy: platform configs show NAME > mine.yaml")
    show.add_argument("name", metavar="NAME", help="a packaged name (quickstart.yaml) or a path")
    show.set_defaults(run=_show)


def _list(args: argparse.Namespace) -> None:
    print_table(("name", "what it is"), [(name, _first_line(path)) for name, path in packaged_configs().items()])


def _show(args: argparse.Namespace) -> None:
    print(find_config(args.name).read_text(encoding="utf-8"), end="")


def _first_line(path: Path) -> str:
    return path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
