"""Self-contained HTML from a template: every page of the project extends page.html.jinja and has its style."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render_page(folder: Path, template: str, **values: Any) -> str:
    """Return a template of `folder` (or of this one, which it may extend and import), filled; values are escaped."""
    return _environment(folder).get_template(template).render(**values)


@cache
def _environment(folder: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{share:.0%}"
    environment.filters["number"] = lambda value: "-" if value is None else f"{value:.3f}"
    environment.filters["signed"] = lambda value: f"{value:+.3f}"
    return environment


def png_address(content: bytes) -> str:
    """Return an address that holds a PNG's bytes."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
