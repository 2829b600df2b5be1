"""Publications changed and signed anew, as an attacker who publishes would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inflate3d.files import file_sha256


def sign(folder: Path) -> None:
    """State the hashes of what is there now."""
    names = sorted(p.name for p in folder.iterdir() if p.name != "SHA256SUMS")
    (folder / "SHA256SUMS").write_text("".join(f"{file_sha256(folder / name)}  {name}\n" for name in names))


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit config.json, and sign."""
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    sign(folder)
