"""Constructor arguments read from source files without importing them, so checks are fast and no list goes stale.

A class is given by its full path ("torch.optim.AdamW"). Re-exports (`from .adamw import AdamW as AdamW`) are followed.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path


@dataclass
class Signature:
    """The arguments of a constructor: all names, and those without a default. `is_open`: others are accepted."""

    names: list[str] = field(default_factory=list)
    required: list[str] = field(default_factory=list)
    is_open: bool = False


@cache
def signature(class_path: str) -> Signature | None:
    """Return the arguments of a class: its dataclass fields, or __init__ and the base's if it passes **kwargs on."""
    found = _find_class(*class_path.rpartition(".")[::2])
    if found is None:
        return None
    module, node = found
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is None and _is_dataclass(node):
        return _of_fields(node)
    above = _of_base(module, node)
    if init is None:
        return above
    own = _of_function(init)
    if not own.is_open or above is None:
        return own
    names = [*own.names, *(n for n in above.names if n not in own.names)]
    required = [*own.required, *(n for n in above.required if n not in own.names)]
    return Signature(names, required, above.is_open)


@cache
def constant(class_path: str, name: str) -> object | None:
    """Return the value of a class attribute, its own or inherited: a literal, or the name of a class; else None."""
    found = _find_class(*class_path.rpartition(".")[::2])
    if found is None:
        return None
    module, node = found
    for statement in node.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        value = getattr(statement, "value", None)
        if isinstance(target, ast.Name) and target.id == name and value is not None:
            return value.id if isinstance(value, ast.Name) else ast.literal_eval(value)
    for base in _bases(module, node):
        if (above := constant(base, name)) is not None:
            return above
    return None


def module_file(module: str) -> Path | None:
    """Return the file of a module without importing it or the packages above it."""
    top, *below = module.split(".")
    if (spec := importlib.util.find_spec(top)) is None:
        return None
    if top == "inflate3d" and below and below[0] in ("datasets", "tasks", "configs", "media", "targets", "heads"):
        # Sub-packages whose folder is elsewhere in an editable install.
        spec = importlib.util.find_spec(f"{top}.{below.pop(0)}")
    if spec is None:
        return None
    if not below:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or []:
        path = Path(folder, *below)
        for file in (path.with_name(path.name + ".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


@cache
def _tree(module: str) -> ast.Module | None:
    file = module_file(module)
    return ast.parse(file.read_text(encoding="utf-8")) if file else None


def _find_class(module: str, name: str, depth: int = 0) -> tuple[str, ast.ClassDef] | None:
    tree = _tree(module) if module else None
    if tree is None or depth > 5:
        return None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
    imports = (n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom))  # also those under TYPE_CHECKING
    for source in imports:
        if original := next((a.name for a in source.names if (a.asname or a.name) == name), None):
            return _find_class(_absolute(module, source), original, depth + 1)
    return None


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    file = module_file(module)
    parts = module.split(".")
    keep = len(parts) - node.level + (1 if file and file.name == "__init__.py" else 0)
    return ".".join([*parts[:keep], *([node.module] if node.module else [])])


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(d) for d in node.decorator_list)


def _of_fields(node: ast.ClassDef) -> Signature:
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    fields = [n for n in fields if "ClassVar" not in ast.unparse(n.annotation)]
    names = [n.target.id for n in fields if isinstance(n.target, ast.Name)]
    return Signature(names, [name for name, n in zip(names, fields, strict=True) if n.value is None])


def _of_function(init: ast.FunctionDef) -> Signature:
    positional = [*init.args.posonlyargs, *init.args.args][1:]
    defaults = len(init.args.defaults)
    required = [a.arg for a in (positional[:-defaults] if defaults else positional)]
    required += [a.arg for a, d in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True) if d is None]
    names = [a.arg for a in [*positional, *init.args.kwonlyargs]]
    return Signature(names, required, init.args.kwarg is not None)


def _of_base(module: str, node: ast.ClassDef) -> Signature | None:
    return next((signature(base) for base in _bases(module, node)), None)


def _bases(module: str, node: ast.ClassDef) -> list[str]:
    """Return the full paths of the bases that can be found."""
    names = [ast.unparse(base) for base in node.bases]
    found = [_find_class(module, name) for name in names if "." not in name]
    return [f"{home}.{base.name}" for home, base in (f for f in found if f is not None)]
