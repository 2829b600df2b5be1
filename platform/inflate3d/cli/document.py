"""One YAML file as a mapping, with the line number of each key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from inflate3d.errors import InputError

KeyPath = tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, with 1e-3 read as a number (YAML 1.1 wants 1.0e-3)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_document(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Return the file's mapping and, for every key path, its line (from 1).

    Raises InputError for invalid YAML, for something other than a mapping, and for a duplicate or non-text key.
    """
    loader = None
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return {}, {}
        if not isinstance(node, yaml.MappingNode):
            kind = node.tag.rpartition(":")[2]
            raise InputError(f"{path}:1: expected keys (trainer:, model:, data:), got a {kind}")
        lines: dict[KeyPath, int] = {}
        _note_lines(node, (), lines, path, loader)
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    finally:
        if loader is not None:
            loader.dispose()


def read_value(text: str) -> Any:
    """Return what `text` means as a YAML value: 3, 1e-3, true, null, [1, 2], {a: 1}; else the text itself."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


def _note_lines(node: yaml.MappingNode, above: KeyPath, lines: dict[KeyPath, int], path: Path, loader: _Loader) -> None:
    loader.flatten_mapping(node)  # `<<: *anchor`
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = loader.construct_object(key_node)
        if not isinstance(key, str):
            raise InputError(f"{path}:{line}: the key {key!r} is not text; put it in quotes")
        here = (*above, key)
        if lines.get(here, line) != line:
            raise InputError(f"{path}:{line}: {'.'.join(here)} appears twice, first on line {lines[here]}; keep one")
        lines[here] = line
        if isinstance(value_node, yaml.MappingNode):
            _note_lines(value_node, here, lines, path, loader)
