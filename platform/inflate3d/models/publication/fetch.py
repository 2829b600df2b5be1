"""From a published name to a local directory, wherever it lies; and what becomes of a copy that proves damaged."""

from __future__ import annotations

from pathlib import Path

from inflate3d.errors import InputError
from inflate3d.files import file_sha256
from inflate3d.models.publication.cache import cached_directory, forget
from inflate3d.models.publication.hub import hub_directory
from inflate3d.models.publication.index import find_entry
from inflate3d.models.publication.integrity import Changed, check_files
from inflate3d.models.publication.layout import CONFIG, PREFIX, SUMS
from inflate3d.models.publication.places import HUB, SCHEMES, parse_hub

_copies: dict[Path, bool] = {}
"""Folders that a cache gave to this process, and whether it is the Hub's: only their files may ever be deleted. What a
folder looks like says nothing: a user may keep a copy of a cache."""


def published_folder(name: str, cache_dir: str | Path | None = None) -> Path | None:
    """Return the local folder of a published name, fetched if need be; None for names that are not published ones.

    "local-dir:path", "hf-hub:org/name@revision", "https://host/dir", "s3://bucket/dir", or a short name of the index.
    """
    sha256 = None
    if (entry := find_entry(name)) is not None:
        name, sha256 = entry.source, entry.sha256
    if name.startswith(PREFIX):
        folder = _local(name)
    elif name.startswith(HUB):
        folder = hub_directory(parse_hub(name), cache_dir=cache_dir)
        _copies[folder] = True
    elif name.startswith(SCHEMES):
        folder = cached_directory(name, cache_dir=cache_dir, sha256=sha256)
        _copies[folder] = False
    else:
        return None
    if sha256 is not None:
        _check_pin(folder, sha256, entry.name if entry else name)
    return folder


def check_directory(folder: Path) -> dict[str, str]:
    """Check a publication's files against its SHA256SUMS, and return that. InputError for whatever differs.

    A damaged file in a cache is deleted, so that the next load fetches it anew; a folder of the user's own is left.
    """
    try:
        return check_files(folder)
    except Changed as fault:
        raise InputError(f"{fault}. {_discard(folder, fault.file)}") from fault


def _discard(folder: Path, damaged: Path) -> str:
    if folder not in _copies:
        return "Publish or download the directory again"
    if _copies[folder]:
        damaged.resolve().unlink(missing_ok=True)
        damaged.unlink(missing_ok=True)
    else:
        forget(folder, damaged)
    return "It was deleted from the cache; load again to fetch it anew"


def _local(name: str) -> Path:
    folder = Path(name.removeprefix(PREFIX)).expanduser()
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{name!r}: {folder} holds no {CONFIG}; expected a published directory. "
            f"Make one: platform publish RUN --output {PREFIX}{folder}"
        )
    return folder


def _check_pin(folder: Path, sha256: str, name: str) -> None:
    if (folder / SUMS).is_file() and (found := file_sha256(folder / SUMS)) != sha256:
        raise InputError(
            f"{name!r}: {folder / SUMS} has sha256 {found[:16]}..., the index says {sha256[:16]}...: the publication "
            "was replaced. Update the index, or load it by its address"
        )
