"""Configs: found by name, merged by key, overridden from the command line; the origin of every key is kept.

Files are merged from left to right before jsonargparse sees them: mappings key by key, everything else as a whole, and
`null` deletes an entry. A file's `extends: OTHER.yaml` is merged before it. A changed class_path drops the
init_args of the former class, but keeps those that are overrides. Overrides come last.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inflate3d.errors import InputError, unknown_name

KeyPath = tuple[str, ...]
# Below these the user makes up the keys; a null there always deletes the entry.
NAMED = (("data", "datasets"), ("model", "tasks"))


@dataclass
class Config:
    """A merged config. `origins` tells for each key path the file and line, or the option, that set it last."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def where(self, *path: str) -> str:
        """Return 'file:line: a.b.c', as far down as the key exists, for the head of a message."""
        for end in range(len(path), 0, -1):
            if origin := self.origins.get(path[:end]):
                return origin if origin == f"--{'.'.join(path)}" else f"{origin}: {'.'.join(path)}"
        return ".".join(path)

    def get(self, *path: str, default: Any = None) -> Any:
        """Return the value at a key path, or `default`."""
        value: Any = self.values
        for key in path:
            if not isinstance(value, dict) or key not in value:
                return default
            value = value[key]
        return value


def load_config(names: Sequence[str], overrides: Sequence[str] = ()) -> Config:
    """Find, read and merge config files, apply overrides (`--a.b.c value` or `--a.b.c=value`), and expand groups."""
    from inflate3d.cli.groups import expand_groups

    config = Config()
    for name in names:
        _read_into(config, find_config(name), ())
    for option, text in _pairs(overrides):
        _override(config, option, text)
    for path in NAMED:
        _drop_nulls(config.get(*path))
    expand_groups(config)
    return config


def _read_into(config: Config, path: Path, below: tuple[Path, ...]) -> None:
    """Merge a file, after the one that it extends: beside it, or found by the rules of find_config."""
    from inflate3d.document import read_document

    if path in below:
        raise InputError(f"{path}: `extends` leads back to itself: {' -> '.join(p.name for p in (*below, path))}")
    values, lines = read_document(path)
    base = values.pop("extends", None)
    if base is not None:
        if not isinstance(base, str):
            raise InputError(f"{path}: extends is {base!r}; expected the name of one config file")
        beside = path.parent / base
        _read_into(config, beside if beside.is_file() else find_config(base), (*below, path))
    config.files.append(path)
    _merge(config, config.values, values, {key: f"{path.name}:{line}" for key, line in lines.items()}, ())


def packaged_configs() -> dict[str, Path]:
    """Return the packaged configs by bare name ('quickstart.yaml', 'debug/overfit.yaml')."""
    spec = importlib.util.find_spec("inflate3d.configs")
    assert spec is not None, "inflate3d.configs is not installed"
    assert spec.submodule_search_locations, "inflate3d.configs is a package"
    folder = Path(next(iter(spec.submodule_search_locations)))
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def find_config(name: str) -> Path:
    """Return the path of a config: 1. as a path from the working folder  2. a packaged name."""
    if (path := Path(name).expanduser()).is_file():
        return path
    packaged = packaged_configs()
    if name in packaged:
        return packaged[name]
    here = [p.name for p in Path(".").glob("*.yaml")]
    raise unknown_name("config", name, {*packaged, *here}, where="--config", see="platform configs list")


def _merge(
    config: Config, base: dict[str, Any], over: dict[str, Any], origins: dict[KeyPath, str], at: KeyPath
) -> None:
    if "class_path" in over and base.get("class_path") not in (None, over["class_path"]):
        _drop_arguments(config, base, (*at, "init_args"))  # they belong to the class before
    for key, value in over.items():
        here = (*at, key)
        if value is None and key in base:
            del base[key]
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(config, base[key], value, origins, here)
            continue
        else:
            base[key] = value
        for path in [p for p in config.origins if p[: len(here)] == here]:
            del config.origins[path]
        if value is not None:
            config.origins.update({p: o for p, o in origins.items() if p[: len(here)] == here})


def _drop_arguments(config: Config, base: dict[str, Any], at: KeyPath) -> None:
    """Drop what files set below `at`. What options set is for the new class, even if given before it."""
    given = {k: v for k, v in base.pop(at[-1], {}).items() if config.origins.get((*at, k), "").startswith("--")}
    if given:
        base[at[-1]] = given


def _pairs(overrides: Sequence[str]) -> Iterable[tuple[str, str]]:
    waiting = list(overrides)
    while waiting:
        option = waiting.pop(0)
        if not option.startswith("--"):
            raise InputError(f"unknown argument {option!r}; an override is --key.subkey value, a file is --config FILE")
        option, equals, text = option[2:].partition("=")
        if not equals:
            if not waiting or (waiting[0].startswith("--")):
                raise InputError(f"--{option} has no value; use --{option} VALUE")
            text = waiting.pop(0)
        yield option, text


def _override(config: Config, option: str, text: str) -> None:
    from inflate3d.document import read_value

    path = tuple(option.split("."))
    for named in NAMED:
        names = config.get(*named, default={})
        depth = len(named)
        if path[:depth] == named and len(path) > depth + 1 and path[depth] not in names:
            raise unknown_name(f"entry of {'.'.join(named)}", path[depth], names, where=f"--{option}")
    at: KeyPath = ()
    base = config.values
    for key in path[:-1]:
        at, base = _descend(at, base, key, option)
    at, base = _into_init_args(at, base, path[-1])
    value = read_value(text)
    here = (*at, path[-1])
    nested = {tuple(p): f"--{option}" for p in _paths(value, here)}
    _merge(config, base, {path[-1]: value}, nested, at)


def _descend(at: KeyPath, base: dict[str, Any], key: str, option: str) -> tuple[KeyPath, dict[str, Any]]:
    at, base = _into_init_args(at, base, key)
    if isinstance(base.get(key), str):  # a class given by its name alone
        base[key] = {"class_path": base[key]}
    below = base.setdefault(key, {})
    if below is None:
        below = base[key] = {}
    if not isinstance(below, dict):
        raise InputError(f"--{option}: {'.'.join((*at, key))} is {below!r}, which has no keys below it")
    return (*at, key), below


def _into_init_args(at: KeyPath, base: dict[str, Any], key: str) -> tuple[KeyPath, dict[str, Any]]:
    """Step into init_args for an argument of a class: --model.optimizer.lr."""
    if "class_path" in base and key not in ("class_path", "init_args", "dict_kwargs"):
        return (*at, "init_args"), base.setdefault("init_args", {})
    return at, base


def _paths(value: Any, here: KeyPath) -> Iterable[KeyPath]:
    yield here
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _paths(below, (*here, str(key)))


def _drop_nulls(named: Any) -> None:
    if isinstance(named, dict):
        for key in [k for k, v in named.items() if v is None]:
            del named[key]
