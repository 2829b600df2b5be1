"""Regular expressions that users give for names of files: checked once, and the part of a name that one means."""

from __future__ import annotations

import re

from inflate3d.errors import InputError


def compiled(pattern: str | None, *, option: str, where: str) -> re.Pattern[str] | None:
    """Return a pattern ready to search with, None for none. InputError where it is no regular expression."""
    try:
        return re.compile(pattern) if pattern else None
    except re.error as fault:
        raise InputError(f"{where}: {option} {pattern!r} is not a regular expression: {fault}") from fault


def first_group(pattern: re.Pattern[str], name: str, *, option: str, where: str) -> str:
    """Return the first group of what a pattern finds in a name. InputError where it finds nothing, or has no group."""
    match = pattern.search(name)
    if match is None or not match.groups():
        raise InputError(f"{where}: {option} {pattern.pattern!r} finds no (group) in {name!r}")
    return str(match[1])
