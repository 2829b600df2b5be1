"""Where a publication goes: a separate folder, a repository on the Hub, or an s3 address. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inflate3d.errors import InputError
from inflate3d.models.publication.layout import CARD, CONFIG, FORMAT, PREFIX, REPLAY, SUMS, WEIGHTS
from inflate3d.models.publication.places import HUB, parse_hub

S3 = "s3://"
ALLOWED = f"{PREFIX}PATH, {HUB}ORG/NAME or {S3}BUCKET/DIR"


@dataclass(frozen=True)
class Destination:
    """The meaning of --output. address: the name for create_model; folder: for a local destination."""

    kind: Literal["local", "hub", "s3"]
    address: str
    folder: Path | None = None


def parse_destination(destination: str) -> Destination:
    """Read a destination. InputError if it is invalid, or a local folder that holds something else."""
    if destination.startswith(HUB):
        place = parse_hub(destination)
        return Destination("hub", str(place))
    if destination.startswith(S3):
        bucket, slash, path = destination.removeprefix(S3).rstrip("/").partition("/")
        if not bucket or not slash or not path or ".." in path.split("/"):
            raise InputError(f"--output {destination!r}: expected {S3}BUCKET/DIR")
        return Destination("s3", destination.rstrip("/"))
    folder = destination_folder(destination)
    return Destination("local", f"{PREFIX}{folder}", folder)


def destination_folder(destination: str) -> Path:
    """Return the folder meant by "local-dir:path" or a plain path. InputError if it holds something else."""
    if ":" in destination.partition("/")[0] and not destination.startswith(PREFIX):
        raise InputError(f"--output {destination!r}: weights are published to {ALLOWED}")
    folder = Path(destination.removeprefix(PREFIX)).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file; give an empty folder")
    if folder.is_dir() and (names := foreign_files(folder)):
        told = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise InputError(f"--output {folder} holds something else ({told}); move that, or give an empty folder")
    return folder


def foreign_files(folder: Path) -> list[str]:
    """Return what publishing would delete and never wrote: all but the files that a publication's SHA256SUMS lists."""
    names = sorted(path.name for path in folder.iterdir())
    if not is_publication(folder):
        return names
    lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines() if SUMS in names else []
    written = {line.partition("  ")[2] for line in lines} | {SUMS, CONFIG, WEIGHTS, REPLAY, CARD}
    return [name for name in names if name not in written or not (folder / name).is_file()]


def is_publication(folder: Path) -> bool:
    """Whether a folder holds a publication of any version of the format."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and str(config.get("format", "")).startswith(FORMAT.partition("/")[0] + "/")
