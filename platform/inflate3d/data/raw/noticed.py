"""A fact noticed on reading that is no error, but that a careful person wants to know."""

from __future__ import annotations

from typing import NamedTuple


class Noticed(NamedTuple):
    """kind: few words, by which facts are counted (`tilted`, `rescaled by slice`). text: what, and by how much."""

    kind: str
    text: str
