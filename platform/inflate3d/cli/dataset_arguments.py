"""A dataset from command-line arguments: the arguments of its constructor."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

from inflate3d.discover import find
from inflate3d.errors import InputError, unknown_name

if TYPE_CHECKING:
    from inflate3d.contracts import AbstractDataset


def dataset_from_arguments(name: str, arguments: list[str], *, command: str, own: Sequence[str]) -> AbstractDataset:
    """Construct a dataset from the arguments that a command did not use; `own` are the command's arguments.

    Raises InputError with close names for an argument that neither accepts.
    """
    from jsonargparse import ArgumentParser

    plug_in = find("datasets", name)
    dataset_class = plug_in.load()
    known = [p for p in inspect.signature(dataset_class.__init__).parameters if p != "self"]
    given = [a[2:].partition("=")[0] for a in arguments if a.startswith("--")]
    where, see = f"{command} {plug_in.name}", f"platform datasets show {plug_in.name}"
    for argument in given:
        if argument.partition(".")[0].rstrip("+") not in known:
            raise unknown_name("argument", argument, [*known, *own], where=where, see=see)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(dataset_class)
    try:
        values = parser.parse_args(arguments)
    except Exception as fault:  # jsonargparse raises argparse's, its own and plain ones
        raise InputError(f"{where}: {' '.join(str(fault).split())[:400]}. Its arguments: {see}") from fault
    return dataset_class(**{name: values[name] for name in known})
