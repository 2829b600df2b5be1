"""The layout of a folder: the dataset that reads it, and with which arguments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inflate3d.contracts import AbstractDataset
from inflate3d.data.raw.files import require_folder
from inflate3d.discover import PlugIn, find, plug_ins
from inflate3d.errors import InputError


@dataclass(frozen=True)
class Layout:
    """A dataset's plug-in and its constructor's arguments, `root` among them."""

    plug_in: PlugIn
    arguments: dict[str, Any]

    def dataset(self) -> AbstractDataset:
        """Return the dataset."""
        made: AbstractDataset = self.plug_in.load()(**self.arguments)
        return made


def recognised(folder: str | Path, *, name: str | None = None) -> Layout:
    """Return the layout of a folder. name: the dataset to take, where the folder alone does not decide.

    InputError lists the layouts that are known where none fits, and those that fit where several do.
    """
    root = require_folder(folder, where="finetune", holds="your cases")
    if name is not None:
        plug_in = find("datasets", name, where="--dataset")
        return Layout(plug_in, plug_in.load().recognise(root) or {"root": str(root)})
    found = [Layout(p, told) for p in plug_ins("datasets").values() if (told := p.load().recognise(root)) is not None]
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(layout.plug_in.name for layout in found)
        raise InputError(f"{root} can be read as {names}; choose: --dataset {found[0].plug_in.name}")
    known = "\n".join(f"  {p.name}: {p.summary}" for p in known_layouts())
    raise InputError(
        f"{root} has none of the layouts that are recognised ({_content(root)}):\n{known}\n"
        "Another one by name: --dataset NAME (platform datasets list)"
    )


def known_layouts() -> list[PlugIn]:
    """Return the datasets that recognise a folder by themselves."""
    bare = AbstractDataset.recognise.__func__  # type: ignore[attr-defined]
    return [p for p in plug_ins("datasets").values() if p.load().recognise.__func__ is not bare]


def _content(root: Path) -> str:
    """Return the first entries of a folder as words."""
    names = sorted(path.name + "/" * path.is_dir() for path in root.iterdir() if path.name[0] != ".")
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"it holds {', '.join(names[:5])}{more}" if names else "it is empty"
