"""Pages of the site that are not in docs/: the README, contributing, changes, and the public API from its docstrings.

A hook of mkdocs (mkdocs.yml). The API is read, not imported: the site is built without torch.
"""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "platform"
PACKAGES = ("inflate3d", "inflate3d.adapters", "inflate3d.contracts", "inflate3d.training")
_ROOT_PAGES = {"index.md": "README.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
Definition = ast.FunctionDef | ast.ClassDef


def on_files(files: Any, config: Any) -> Any:
    """Add the pages; mkdocs calls this."""
    for name, source in _ROOT_PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, "api.md", content=api_page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead links that leave docs/ to the pages added above, and show other files of the repository as names.

    mkdocs calls this.
    """
    up = "../" * page.file.src_uri.count("/")
    own = {source: name for name, source in _ROOT_PAGES.items()}

    def inside(link: re.Match[str]) -> str:
        if not link[2].startswith(f"{up}../"):
            return link[0]
        name = own.get(link[2].removeprefix(f"{up}../"))
        return f"[{link[1]}]({up}{name}{link[3] or ''})" if name else f"`{link[1]}`"

    return "\n".join(_apart(_LINK.sub(inside, markdown).splitlines()))


def _apart(lines: list[str]) -> Iterator[str]:
    """Yield lines as mkdocs' Markdown needs them, which knows less than GitHub's: a blank line before a list that
    follows a paragraph, and code in a list at the margin."""
    before, in_code, indent, is_open = "", False, 0, False
    for line in lines:
        if line.lstrip().startswith("```"):
            indent = indent if in_code else len(line) - len(line.lstrip())
            if indent and not in_code:
                is_open = True  # the code ends the list; its next entry begins another
                yield ""
            in_code = not in_code
            line = line[indent:]
        elif in_code:
            line = line[indent:]
        elif re.match(r"- |\d+\. ", line):
            if is_open or re.match(r"(?!\d+\. )[^\s#-]", before):
                yield ""
            is_open = False
        yield line
        before = line


def api_page() -> str:
    """Return the public names of each package, with signature and docstring, as Markdown."""
    parts = ["# The public API", "What is not on this page may change without a word."]
    for package in PACKAGES:
        tree = _tree(package)
        parts += [f"## {package}", _text(tree)]
        for name, found in sorted(public(package)):
            parts += [f"### {name}", f"```python\n{_signature(found)}\n```", _text(found)]
            parts += [f"- `{method.name}`: {_first_line(method)}" for method in _methods(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def public(package: str) -> Iterator[tuple[str, Definition]]:
    """Yield what a package offers: its `from x import A as A`, or a module's own definitions without an underscore."""
    tree = _tree(package)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.asname == alias.name and (found := _find(node.module or "", alias.name)):
                    yield alias.name, found
    if not (SOURCE / package.replace(".", "/")).is_dir():
        yield from ((n.name, n) for n in tree.body if isinstance(n, Definition) and not n.name.startswith("_"))


def _find(module: str, name: str) -> Definition | None:
    """Return a definition, through as many re-exports as it takes; None for what is neither function nor class."""
    for node in _tree(module).body:
        if isinstance(node, Definition) and node.name == name:
            return node
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and any(name == (a.asname or a.name) for a in node.names):
            return _find(node.module or "", name)
    return None


def _tree(module: str) -> ast.Module:
    path = SOURCE / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _signature(node: Definition) -> str:
    """Return a definition's head as one calls it: of a class the arguments of its constructor, or its fields."""
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return f"{node.name}{_arguments(node)}{returns}"
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return f"class {node.name}{_arguments(member)}"
    fields = [ast.unparse(n) for n in node.body if isinstance(n, ast.AnnAssign) and "ClassVar" not in ast.unparse(n)]
    return f"class {node.name}({_listed(fields)})"


def _arguments(node: ast.FunctionDef) -> str:
    given = ast.unparse(node.args).removeprefix("self, ").removeprefix("self")
    depth, parts = 0, [""]
    for character in given:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return f"({_listed([part.strip() for part in parts if part.strip()])})"


def _listed(arguments: list[str]) -> str:
    joined = ", ".join(arguments)
    return joined if len(joined) < 70 else "\n    " + ",\n    ".join(arguments) + ",\n"


def _methods(node: Definition) -> list[ast.FunctionDef]:
    body = node.body if isinstance(node, ast.ClassDef) else []
    return [n for n in body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_") and ast.get_docstring(n)]


def _first_line(node: Definition) -> str:
    return html.escape((ast.get_docstring(node) or "").partition("\n")[0], quote=False)


def _text(node: Definition | ast.Module) -> str:
    own = ast.get_docstring(node) or ""
    if isinstance(node, ast.ClassDef):
        constructor = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        own += "\n\n" + ((ast.get_docstring(constructor) or "") if constructor else "")
    return html.escape(own.strip(), quote=False)
