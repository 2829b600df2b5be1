"""Figures as files: written whole, then renamed."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from inflate3d.errors import InputError


def save_figure(figure: Figure, path: Path, *, dpi: int = 110) -> Path:
    """Write a figure as PNG and return its path. InputError for another ending or a folder that does not exist."""
    if path.suffix != ".png":
        raise InputError(f"--output {path}: pictures are written as PNG; name a file that ends in .png")
    if not path.parent.is_dir():
        raise InputError(f"--output {path}: the folder {path.parent} does not exist; make it, or name another")
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=dpi, format="png")
    temporary.replace(path)
    return path
