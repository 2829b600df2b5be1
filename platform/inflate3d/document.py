"""One YAML file as a mapping, with the line number of each key; what YAML 1.1 would misread is text, or refused.

Text, as in YAML 1.2: dates, and numbers of base 60 such as 12:30:00. Numbers: 1e-3 too. Refused: octal numbers such as
0100, keys that appear twice, several documents. yes, no, on and off are true and false, as in all of PyYAML's files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from inflate3d.errors import InputError

KeyPath = tuple[str, ...]
_INT, _FLOAT, _TIME, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp", "merge"))
_MOST_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, without its numbers of base 60 and its dates, and with 1e-3 and the rules above."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put what `<<: *anchor` brings in before the mapping's own keys, which win; refuse keys that appear twice."""
        if getattr(node, "is_flat", False):
            return
        if doubled := _doubled(node):
            told = f"{doubled[1].value} appears twice, first on line {doubled[0].start_mark.line + 1}; keep one"
            raise yaml.MarkedYAMLError(problem=told, problem_mark=doubled[1].start_mark)
        super().flatten_mapping(node)
        node.value, node.is_flat = list({_key(pair[0]): pair for pair in node.value}.values()), True  # type: ignore[attr-defined]

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Refuse what is 64 in YAML 1.1 and 100 in YAML 1.2."""
        if re.fullmatch(r"[-+]?0[0-9_]+", node.value):
            told = f"{node.value} is an octal number in YAML 1.1; write it without the 0, or as text in quotes"
            raise yaml.MarkedYAMLError(problem=told, problem_mark=node.start_mark)
        return super().construct_yaml_int(node)


_Loader.add_constructor(_INT, _Loader.construct_yaml_int)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT, _TIME)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _INT, re.compile(r"^(?:[-+]?0b[01_]+|[-+]?0x[0-9a-fA-F_]+|[-+]?(?:0|[1-9][0-9_]*|0[0-7_]+))$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def read_document(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Return the file's mapping and, for every key path, its line (from 1). UTF-8 or UTF-16 with its mark.

    What an alias (*name) stands for is a value of its own. Raises InputError for invalid YAML, for something other than
    one mapping, for a doubled or non-text key, and for aliases that multiply beyond measure.
    """
    with _loaded(path) as (loader, node):
        if node is None:
            return {}, {}
        if not isinstance(node, yaml.MappingNode):
            kind = node.tag.rpartition(":")[2]
            raise InputError(f"{path}:1: expected keys (trainer:, model:, data:), got a {kind}")
        lines: dict[KeyPath, int] = {}
        _note_lines(node, (), lines, path, loader)
        return _unshared(loader.construct_document(node), path, [0]), lines


def read_any(path: Path) -> Any:
    """Return what a file holds, be it a list or a mapping; the rules and errors are those of `read_document`."""
    with _loaded(path) as (loader, node):
        return None if node is None else _unshared(loader.construct_document(node), path, [0])


@contextmanager
def _loaded(path: Path) -> Iterator[tuple[_Loader, yaml.Node | None]]:
    """Parse a file into its one node; what goes wrong then and inside the block becomes an InputError with its line."""
    loader = None
    try:
        loader = _Loader(path.read_bytes())
        yield loader, loader.get_single_node()
    except yaml.composer.ComposerError as error:
        raise InputError(f"{_place(path, error)}: {_one_document(error)}") from None
    except yaml.MarkedYAMLError as error:
        raise InputError(f"{_place(path, error)}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}; save it as UTF-8") from None
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply, or an alias stands for what it lies in") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    finally:
        if loader is not None:
            loader.dispose()


def read_value(text: str) -> Any:
    """Return what `text` means as a YAML value: 3, 1e-3, true, null, [1, 2], {a: 1}; else the text itself.

    InputError for what a file may not hold either: an octal number, a key that appears twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.scanner.ScannerError, yaml.parser.ParserError, yaml.composer.ComposerError, yaml.reader.ReaderError):
        return text
    except yaml.constructor.ConstructorError:
        return text
    except (yaml.MarkedYAMLError, RecursionError) as error:
        raise InputError(f"{text[:80]!r}: {getattr(error, 'problem', 'is nested too deeply')}") from None


def _key(node: yaml.Node) -> Any:
    return (node.tag, node.value) if isinstance(node, yaml.ScalarNode) else id(node)


def _doubled(node: yaml.MappingNode) -> tuple[yaml.Node, yaml.Node] | None:
    """Return two nodes of one key, as the file has it; None: every key is there once."""
    first: dict[Any, yaml.Node] = {}
    return next(((first[_key(k)], k) for k, _ in node.value if first.setdefault(_key(k), k) is not k), None)


def _place(path: Path, error: yaml.MarkedYAMLError) -> str:
    return f"{path}:{error.problem_mark.line + 1}" if error.problem_mark else str(path)


def _one_document(error: yaml.MarkedYAMLError) -> str:
    if error.problem == "but found another document":
        return "a second document begins; a config is one: give each its own file and --config"
    return f"not valid YAML: {error.problem}"


def _unshared(value: Any, path: Path, count: list[int]) -> Any:
    """Return a copy in which nothing stands twice, so that a change of one place changes no other."""
    count[0] += 1
    if count[0] > _MOST_VALUES:
        raise InputError(f"{path}: holds more than {_MOST_VALUES} values, perhaps by aliases of aliases")
    if isinstance(value, dict):
        return {key: _unshared(below, path, count) for key, below in value.items()}
    return [_unshared(below, path, count) for below in value] if isinstance(value, list) else value


def _note_lines(node: yaml.MappingNode, above: KeyPath, lines: dict[KeyPath, int], path: Path, loader: _Loader) -> None:
    if len(lines) > _MOST_VALUES:
        raise InputError(f"{path}: holds more than {_MOST_VALUES} keys, perhaps by aliases of aliases")
    if not getattr(node, "is_flat", False) and (doubled := _doubled(node)):
        before, line = (each.start_mark.line + 1 for each in doubled)
        told = ".".join((*above, doubled[1].value))
        raise InputError(f"{path}:{line}: {told} appears twice, first on line {before}; keep one")
    loader.flatten_mapping(node)
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = loader.construct_object(key_node)
        if not isinstance(key, str):
            raise InputError(f"{path}:{line}: the key {key!r} is not text; put it in quotes")
        here = (*above, key)
        lines[here] = line
        if isinstance(value_node, yaml.MappingNode):
            _note_lines(value_node, here, lines, path, loader)
