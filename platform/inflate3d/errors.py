"""Errors whose cause is the user's input, and the words that help to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What the user gave is wrong; the message names the thing, what it got, what is allowed and the remedy.

    The command exits with 2 on this class alone: torch and others raise plain ValueError for faults of ours.
    """


def close_names(name: str, allowed: Iterable[str], most: int = 3) -> list[str]:
    """Return the names in `allowed` nearest to `name`, best first; case is ignored."""
    by_lower = {a.lower(): a for a in allowed}
    return [by_lower[m] for m in difflib.get_close_matches(name.lower(), by_lower, n=most, cutoff=0.5)]


def unknown_name(what: str, name: str, allowed: Iterable[str], *, where: str = "", see: str = "") -> InputError:
    """Return the error for a name that does not exist.

    Example: unknown_name("dataset", "msdd", ["msd"], see="platform datasets list").
    """
    allowed = sorted(allowed)
    close = close_names(name, allowed)
    if close:
        hint = "close names: " + ", ".join(repr(c) for c in close)
    elif len(allowed) <= 12:
        hint = "allowed: " + (", ".join(repr(a) for a in allowed) or "(none)")
    else:
        hint = f"{len(allowed)} names exist"
    prefix = f"{where}: " if where else ""
    suffix = f". All names: {see}" if see else ""
    return InputError(f"{prefix}unknown {what} {name!r}; {hint}{suffix}")
