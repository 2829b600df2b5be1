"""Where a publication goes: a folder of its own, refused where it holds anything else."""

from __future__ import annotations

import json
from pathlib import Path

from inflate3d.errors import InputError
from inflate3d.models.layout import CONFIG, FORMAT, PREFIX


def destination_folder(destination: str) -> Path:
    """Return the folder meant by "local-dir:path" or a plain path. InputError if it holds something else."""
    if ":" in destination.partition("/")[0] and not destination.startswith(PREFIX):
        raise InputError(f"--output {destination!r}: weights are published to {PREFIX}PATH")
    folder = Path(destination.removeprefix(PREFIX)).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file; name an empty folder")
    if folder.is_dir() and any(folder.iterdir()) and not is_publication(folder):
        names = sorted(p.name for p in folder.iterdir())[:3]
        raise InputError(f"--output {folder} holds something else ({', '.join(names)}, ...); name an empty folder")
    return folder


def is_publication(folder: Path) -> bool:
    """Whether a folder holds a publication of any version of the format."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and str(config.get("format", "")).startswith(FORMAT.partition("/")[0] + "/")
