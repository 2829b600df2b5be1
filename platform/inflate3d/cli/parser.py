"""jsonargparse's parser with short errors: the key with its file and line, what it got, what is allowed."""

from __future__ import annotations

import re
from typing import NoReturn

import lightning.pytorch.callbacks
import lightning.pytorch.loggers
import torch
from lightning.pytorch.cli import LightningArgumentParser

from inflate3d.cli.config import NAMED, Config
from inflate3d.errors import InputError, unknown_name

_KEY = re.compile(r'Parser key "([^"]*)":')
_CLASS = re.compile(r"dot import path string: (\S+)")


class ConfigParser(LightningArgumentParser):
    """A parser whose error is an InputError. Set `config` to include file and line."""

    config: Config | None = None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise InputError(explain(message, self.config or Config())) from ex


def explain(message: str, config: Config) -> str:
    """Return jsonargparse's message as one or two lines of ours."""
    path = tuple(".".join(_KEY.findall(message)).split(".")) if _KEY.search(message) else ()
    where = config.where(*_deepen(path, config)) if path else "config"
    if found := _CLASS.search(message):
        return str(unknown_name("class", found[1], _class_names(), where=where))
    lines = [line.strip() for line in _KEY.sub("", message).splitlines() if line.strip()]
    if any(line.startswith("Does not validate against any") for line in lines):
        expected = [line[2:].removeprefix("Expected a ") for line in lines if line.startswith("- ")]
        got = next((line.partition(": ")[2] for line in lines if line.startswith("Given value: ")), "?")
        lines = [f"got {got}; expected {' or '.join(expected)}"]
    return f"{where}: {_plain(' '.join(lines))}"


def _deepen(path: tuple[str, ...], config: Config) -> tuple[str, ...]:
    """Insert the user-made name that jsonargparse leaves out ('model.tasks' + 'datasets') where there is only one."""
    names = list(config.get(*path[:2], default={})) if path[:2] in NAMED else []
    if len(path) > 2 and len(names) == 1:
        return (*path[:2], names[0], *path[2:])
    return path


def _plain(text: str) -> str:
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", text)
    return text.replace("typing.", "").replace("NoneType", "null").replace("Expected a ", "expected ")


def _class_names() -> list[str]:
    homes = (lightning.pytorch.loggers, lightning.pytorch.callbacks, torch.optim)
    return [name for home in homes for name in dir(home) if name[0].isupper()]
