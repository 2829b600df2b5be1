"""Chosen: a value of a config with its reason; and the YAML of a tree of them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Union

_WIDTH = 120


@dataclass(frozen=True)
class Chosen:
    """One value, and in a few words why it is this one."""

    value: Any
    reason: str = ""


Tree = Mapping[str, Union[Chosen, "Tree"]]


def as_yaml(tree: Tree) -> str:
    """Return the tree as YAML, the reason beside each value, or above it where the line would pass 120 columns."""
    return "\n".join(_lines(tree, "")) + "\n"


def values_of(tree: Tree) -> dict[str, Any]:
    """Return the values alone."""
    return {k: v.value if isinstance(v, Chosen) else values_of(v) for k, v in tree.items()}


def _lines(tree: Tree, indent: str) -> Iterator[str]:
    for key, node in tree.items():
        if not isinstance(node, Chosen):
            yield f"{indent}{key}:"
            yield from _lines(node, indent + "  ")
            continue
        text = f"{indent}{key}: {json.dumps(node.value, ensure_ascii=False)}"  # JSON is YAML
        beside = f"{text}  # {node.reason}" if node.reason else text
        if len(beside) > _WIDTH:
            yield from textwrap.wrap(node.reason, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
            beside = text
        yield beside
