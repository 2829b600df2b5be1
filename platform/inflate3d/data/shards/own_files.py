"""The files that a build of shards makes in its folder; whatever else lies there is somebody's own and stays."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from inflate3d.contracts import SPLITS
from inflate3d.data.shards.manifest import MANIFEST_FILE

NOTICED_FILE, REPORT_FILE = "noticed.jsonl", "report.html"
BESIDE = (MANIFEST_FILE, NOTICED_FILE, REPORT_FILE)
"""What describes the shards beside them."""
_SHARD_FILE = rf"({'|'.join(SPLITS)})-\d{{6}}\.(tar|index\.json)"
_OWN = re.compile(rf"(\.tmp-)?({_SHARD_FILE}|{'|'.join(map(re.escape, BESIDE))})")


def is_own(path: Path) -> bool:
    """Whether a build makes files of this name, finished or half written; a folder is never one."""
    return _OWN.fullmatch(path.name) is not None and not path.is_dir()


def strange_files(folder: Path) -> list[str]:
    """Return the names of what no build makes, in order."""
    return sorted(path.name for path in folder.iterdir() if not is_own(path))


def remove_own_files(folder: Path, *, but: Collection[str] = ()) -> None:
    """Delete what builds made in a folder, except some names; nothing else."""
    for path in folder.iterdir():
        if is_own(path) and path.name not in but:
            path.unlink()
