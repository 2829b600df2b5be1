"""What a site needs in every job: account, partition, modules, container, environment. One YAML (`site.yaml`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from inflate3d.errors import InputError, unknown_name

GPU_OPTIONS = ("gpus-per-node", "gres")
_TEXTS = ("account", "partition", "qos", "constraint", "memory", "setup", "container", "python")
_LISTS = ("sbatch", "modules", "srun")
# These go into a comment of the script that sbatch reads: one line, no quotes.
_ONE_WORD = ("account", "partition", "qos", "constraint", "memory")


@dataclass(frozen=True)
class Site:
    """Settings of a site; site.yaml beside this file explains each one."""

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    cpus_per_task: int | None = None
    memory: str | None = None
    gpu_option: str = "gpus-per-node"
    sbatch: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    setup: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    srun: tuple[str, ...] = ()
    container: str | None = None
    python: str | None = None
    save_before_s: int = 180

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "site") -> Site:
        """Read from plain values; InputError names `where`, the key, what it got and what is allowed."""
        known = [f.name for f in fields(cls)]
        read: dict[str, Any] = {}
        for key, value in values.items():
            if key not in known:
                raise unknown_name("key", key, known, where=where)
            if value is not None:
                read[key] = _read(key, value, f"{where}: {key}")
        return cls(**read)


def _read(key: str, value: Any, where: str) -> Any:
    if key in _TEXTS:
        if isinstance(value, dict | list):
            raise InputError(f"{where} is {value!r}; expected text")
        return _one_word(str(value), where) if key in _ONE_WORD else str(value)
    if key in _LISTS:
        if not isinstance(value, list) or not all(isinstance(v, str) and "\n" not in v for v in value):
            raise InputError(f"{where} is {value!r}; expected a list of strings")
        return tuple(value)
    if key == "environment":
        return _environment(value, where)
    if key == "gpu_option":
        if value not in GPU_OPTIONS:
            raise unknown_name("option", str(value), GPU_OPTIONS, where=where)
        return value
    least = 1 if key == "cpus_per_task" else 0
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{where} is {value!r}; expected a whole number from {least}")
    return value


def _one_word(text: str, where: str) -> str:
    if not re.fullmatch(r"[^\s\"'\\]+", text):
        raise InputError(f"{where} is {text!r}; expected one word without spaces and quotes")
    return text


def _environment(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise InputError(f"{where} is {value!r}; expected NAME: value")
    for name, text in value.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise InputError(f"{where}: {name!r} is not a valid variable name")
        if isinstance(text, dict | list):
            raise InputError(f"{where}.{name} is {text!r}; expected text")
    return {name: "" if text is None else str(text) for name, text in value.items()}
