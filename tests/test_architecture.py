"""The list that imports follow: downwards only, no cycles, and no torch where the command must answer at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOMES = {
    "inflate3d.tasks": ROOT / "tasks",
    "inflate3d.datasets": ROOT / "datasets",
    "inflate3d.configs": ROOT / "configs",
    "inflate3d.slurm": ROOT / "slurm",
    "inflate3d": ROOT / "platform" / "inflate3d",
}
# Each may import itself and what stands in the rows above it; packages of one row do not see each other.
ROWS: list[set[str]] = [
    {"errors", "durations", "seeds"},
    {"files", "sample", "document", "pages"},
    {"discover", "remote"},
    {"contracts"},
    {"targets", "inflation"},
    {"nn", "data"},
    {"media", "heads", "zoos"},
    {"models"},
    {"training"},
    {"evaluation", "publishing", "slurm", "timm"},
    {"adapters", "planning", "portable", "reports"},
    {"cli"},
]
PLUG_INS_MAY_IMPORT = {"errors", "seeds", "sample", "contracts", "targets", "heads", "nn", "data"}
WITHOUT_TORCH = [
    "inflate3d",
    "inflate3d.errors",
    "inflate3d.durations",
    "inflate3d.sample",
    "inflate3d.contracts",
    "inflate3d.discover",
    "inflate3d.inflation.plan",
    "inflate3d.data.shards.manifest",
    "inflate3d.data.raw.readers",
    "inflate3d.training.check",
    "inflate3d.cli.main",
    "inflate3d.cli.check",
    "inflate3d.cli.submit",
    "inflate3d.cli.status",
    "inflate3d.slurm.script",
]
LONGEST_FILE = 400


@cache
def modules() -> dict[str, Path]:
    """Every module of the project by its import name."""
    found = {}
    for package, folder in HOMES.items():
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join([package, *parts])] = file
    return found


@cache
def imports(module: str, *, everywhere: bool = True) -> frozenset[str]:
    """What a module imports from the project (as module names); only at its top level if not `everywhere`."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree) if everywhere else top_level(tree.body):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = source(module, node)
            found.update(full if (full := f"{home}.{a.name}") in modules() else home for a in node.names)
    return frozenset(found)


def source(module: str, node: ast.ImportFrom) -> str:
    """The module that a `from ... import` names, relative ones resolved."""
    if not node.level:
        return node.module or ""
    package = module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package


def top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run on import: not in functions, not under TYPE_CHECKING."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            yield from top_level([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from top_level([*node.body, *node.orelse, *node.finalbody])


def part(module: str) -> str:
    """'inflate3d.data.raw.readers' -> 'data'; the face itself is ''."""
    return [*module.split("."), ""][1]


def row(name: str) -> int:
    """Where a part stands in the list."""
    return next(i for i, names in enumerate(ROWS) if name in names)


def pairs(chosen: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """Each module whose part is chosen, with each module that it imports."""
    return ((module, imported) for module in modules() if chosen(part(module)) for imported in imports(module))


def test_imports_point_down_the_list() -> None:
    for module, imported in pairs(lambda own: own not in ("", "tasks", "datasets", "configs")):
        if imported.split(".")[0] != "inflate3d" or part(imported) in ("", part(module)):
            continue
        assert part(imported) not in ("tasks", "datasets"), f"{module} names the plug-in {imported}"
        if part(imported) != "configs":
            assert row(part(imported)) < row(part(module)), f"{module} imports {imported}, which stands above it"


def test_plug_ins_know_contracts_and_shared_parts_only() -> None:
    for module, imported in pairs(lambda own: own in ("tasks", "datasets")):
        if imported.startswith("inflate3d"):
            assert part(imported) in PLUG_INS_MAY_IMPORT, f"{module} imports {imported}"


def test_no_module_takes_part_in_an_import_cycle() -> None:
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above, module])
        if module in done:
            return
        for imported in sorted(imports(module, everywhere=False)):
            if imported in modules() and imported != module:
                visit(imported, (*above, module))
        done.add(module)

    for module in modules():
        visit(module, ())


def test_nothing_imports_the_roots_folders_as_top_level_names() -> None:
    for module, imported in pairs(lambda own: True):
        assert imported.split(".")[0] not in ("tasks", "datasets", "configs", "slurm"), f"{module} imports {imported}"


def test_every_module_says_what_it_is_and_stays_short() -> None:
    for module, path in modules().items():
        text = path.read_text(encoding="utf-8")
        first = (ast.get_docstring(ast.parse(text)) or "").split("\n", 1)[0]
        assert first.endswith((".", ":", ",")) or len(first) > 20, f"{module}: line 1 says nothing: {first!r}"
        assert "TODO" not in text, module
        assert text.count("\n") <= LONGEST_FILE, f"{module} has {text.count(chr(10))} lines: two nouns?"


def test_these_modules_and_every_dataset_medium_and_target_import_without_torch() -> None:
    names = [*WITHOUT_TORCH, *(m for m in modules() if part(m) in ("datasets", "media", "targets"))]
    code = "import importlib, sys\n" + "".join(
        f"importlib.import_module({name!r}); assert 'torch' not in sys.modules, {name!r}\n" for name in names
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, encoding="utf-8", cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_standard_librarys_platform_is_found_in_the_projects_root() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.system())"],
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert not (ROOT / "platform" / "__init__.py").exists()


def test_the_roots_datasets_folder_gives_way_to_hugging_faces_name() -> None:
    done = subprocess.run([sys.executable, "-c", "import datasets"], capture_output=True, encoding="utf-8", cwd=ROOT)
    assert done.returncode == 1
    assert "ImportError: this folder is inflate3d.datasets" in done.stderr
