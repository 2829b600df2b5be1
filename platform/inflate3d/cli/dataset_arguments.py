"""A dataset's arguments on a command line: those of its constructor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inflate3d.discover import PlugIn, find
from inflate3d.errors import InputError, unknown_name

if TYPE_CHECKING:
    from inflate3d.contracts import AbstractDataset


def dataset_from_arguments(name: str, arguments: list[str], *, command: str, own: Sequence[str]) -> AbstractDataset:
    """Construct a dataset from the arguments that a command did not use; `own` are the command's arguments.

    Raises InputError with close names for an argument that neither accepts.
    """
    plug_in = find("datasets", name)
    made: AbstractDataset = plug_in.load()(**_read(plug_in, arguments, {}, command=command, own=own))
    return made


def given_arguments(
    plug_in: PlugIn, arguments: list[str], known: Mapping[str, Any], *, command: str, own: Sequence[str]
) -> dict[str, Any]:
    """Return what `arguments` say over what is known of the constructor's arguments; errors as above."""
    values = _read(plug_in, arguments, known, command=command, own=own)
    return {name: value for name, value in values.items() if name in known or name in _named(arguments)}


def _named(arguments: Sequence[str]) -> set[str]:
    return {a[2:].partition("=")[0].partition(".")[0].rstrip("+") for a in arguments if a.startswith("--")}


def _read(
    plug_in: PlugIn, arguments: list[str], known: Mapping[str, Any], *, command: str, own: Sequence[str]
) -> dict[str, Any]:
    """Return every argument of the constructor: as given, as known, or its default."""
    from jsonargparse import ArgumentParser

    dataset_class = plug_in.load()
    names = [p for p in inspect.signature(dataset_class.__init__).parameters if p != "self"]
    where, see = f"{command} {plug_in.name}", f"platform datasets show {plug_in.name}"
    for argument in sorted(_named(arguments)):
        if argument not in names:
            raise unknown_name("argument", argument, [*names, *own], where=where, see=see)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(dataset_class)
    parser.set_defaults(dict(known))
    try:
        values = parser.parse_args(arguments)
    except Exception as fault:  # jsonargparse raises argparse's, its own and plain ones
        raise InputError(f"{where}: {' '.join(str(fault).split())[:400]}. Its arguments: {see}") from fault
    return {name: values[name] for name in names}
