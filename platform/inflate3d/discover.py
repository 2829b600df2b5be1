"""Lists plug-ins (datasets, tasks, media, targets, heads, zoos), built-in and of entry points, without importing any.

A plug-in is a module: its name is what users write, line 1 of its docstring says what it is, and the class that derives
from the contract is what is built. Listing reads the source with `ast`; only `load` imports.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from inflate3d.errors import InputError, unknown_name

Group = Literal["datasets", "tasks", "media", "targets", "heads", "zoos"]
# The contract first; then what shares a part of it and is no plug-in itself.
_BASES: dict[Group, tuple[str, ...]] = {
    "datasets": ("AbstractDataset", "ListedVolumes", "LabelledVolumes", "LabelledVideos"),
    "tasks": ("AbstractTask", "SupervisedTask", "ClassificationTask"),
    "media": ("AbstractMedium",),
    "targets": ("AbstractTarget",),
    "heads": ("Head",),
    "zoos": ("AbstractZoo",),
}
_ONE = {
    "datasets": "dataset",
    "tasks": "task",
    "media": "medium",
    "targets": "target type",
    "heads": "head",
    "zoos": "zoo",
}
_SEE = {"datasets": "platform datasets list", "tasks": "platform tasks list", "zoos": "platform models list"}


@dataclass(frozen=True)
class PlugIn:
    """One plug-in that can be built: `name` as users write it, and where its class is."""

    name: str
    module: str
    class_name: str
    summary: str

    @property
    def class_path(self) -> str:
        """What a config's class_path says in full."""
        return f"{self.module}.{self.class_name}"

    def load(self) -> type[Any]:
        """Import the module and return the class."""
        return getattr(importlib.import_module(self.module), self.class_name)


@cache
def plug_ins(group: Group) -> dict[str, PlugIn]:
    """Return every plug-in of a group by name; built-in ones first, then those of the entry points."""
    folder = Path(_package_folder(f"inflate3d.{group}"))
    found: dict[str, PlugIn] = {}
    for file in sorted(folder.glob("*.py")):
        if not file.stem.startswith("_"):
            found[file.stem] = _read(file.stem, f"inflate3d.{group}.{file.stem}", file, _BASES[group], None)
    for point in entry_points(group=f"inflate3d.{group}"):
        module, _, attribute = point.value.partition(":")
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise InputError(f"entry point {point.name!r} of inflate3d.{group}: no module {module!r}; reinstall it")
        if point.name in found:
            raise InputError(f"entry point {point.name!r} of inflate3d.{group} names what exists already; rename it")
        found[point.name] = _read(point.name, module, Path(spec.origin), _BASES[group], attribute or None)
    return found


def find(group: Group, name: str, *, where: str = "") -> PlugIn:
    """Return one plug-in by its name, class name or class path; InputError with close names if there is none."""
    known = plug_ins(group)
    for plug_in in known.values():
        if name in (plug_in.name, plug_in.class_name, plug_in.class_path):
            return plug_in
    raise unknown_name(_ONE[group], name, known, where=where, see=_SEE.get(group, ""))


def name_of(group: Group, cls: type[Any]) -> str:
    """Return the name of the plug-in whose class this is. InputError if it is none."""
    path = f"{cls.__module__}.{cls.__name__}"
    name = next((p.name for p in plug_ins(group).values() if p.class_path == path), None)
    if name is None:
        raise InputError(f"{path} is no plug-in; name its module under the entry-point group inflate3d.{group}")
    return name


def _package_folder(package: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed"
    assert spec.submodule_search_locations, f"{package} is not a package"
    return spec.submodule_search_locations[0]


def _read(name: str, module: str, file: Path, bases: tuple[str, ...], class_name: str | None) -> PlugIn:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    summary = (ast.get_docstring(tree) or "").split("\n", 1)[0]
    if class_name is None:
        classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and any(_base_name(b) in bases for b in n.bases)]
        if len(classes) != 1:
            raise InputError(f"{file}: expected exactly one class that derives from {bases[0]}, found {len(classes)}")
        class_name = classes[0].name
    return PlugIn(name, module, class_name, summary)


def _base_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
