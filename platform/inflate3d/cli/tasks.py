"""`platform tasks list`: the tasks that a config can use in model.tasks."""

from __future__ import annotations

import argparse
from typing import Any

from inflate3d.cli.table import print_table
from inflate3d.discover import plug_ins


def add_parser(subparsers: Any) -> None:
    """Add `platform tasks`."""
    parser = subparsers.add_parser("tasks", help="list the tasks that a config can use")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    commands.add_parser("list", help="every task, built-in and from plug-ins").set_defaults(run=_list)


def _list(args: argparse.Namespace) -> None:
    rows = [(task.name, task.class_name, task.summary) for task in plug_ins("tasks").values()]
    print_table(("name", "class_path", "what it is"), rows)
