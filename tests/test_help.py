"""The help of every command begins with an example that its own parser takes, of configs and names that there are."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator

import pytest
from inflate3d.cli.config import packaged_configs
from inflate3d.cli.examples import _OF_COMMANDS
from inflate3d.cli.main import build_parser


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and all below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from commands(below)


PARSER = build_parser()
COMMANDS = {command.prog: command for command in commands(PARSER)}


def example(prog: str) -> list[str]:
    """The words of the example with which a command's help begins."""
    first, empty, *_ = COMMANDS[prog].format_help().splitlines()
    assert empty == ""
    assert first.startswith("example: ")
    return shlex.split(first.removeprefix("example: "))


@pytest.mark.parametrize("prog", COMMANDS)
def test_the_help_of_a_command_begins_with_an_example_that_it_takes(prog: str) -> None:
    words = example(prog)
    assert words[: len(prog.split())] == prog.split()
    args, unknown = PARSER.parse_known_args(words[1:])
    assert callable(args.run)
    assert not unknown or args.takes_overrides
    assert all(word in packaged_configs() for word in words if word.endswith(".yaml") and word.startswith("quickstart"))


def test_each_command_has_an_example_of_its_own_and_there_is_none_of_another() -> None:
    parsers = COMMANDS.items()
    leaves = {prog.removeprefix("platform ") for prog, parser in parsers if parser.get_default("run") is not None}
    assert set(_OF_COMMANDS) == leaves
