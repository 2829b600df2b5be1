"""A cache of published directories, shared by processes: each is fetched once, whole, and checked on arrival.

<cache>/weights/<place>/<first 32 digits of the sha256 of SHA256SUMS>/ holds one publication; it appears by a rename.
`latest` names the one that was seen last, for use offline; `.part-<sha256>` is a broken download to go on with. One
process at a time works in a place (a file lock, which ends with its process); the others wait and find the result.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from pathlib import Path

from filelock import FileLock

from inflate3d.errors import InputError
from inflate3d.files import told_when_full
from inflate3d.models.publication.integrity import parse_sums
from inflate3d.models.publication.layout import SUMS, most_bytes
from inflate3d.remote.address import Address
from inflate3d.remote.client import download, read
from inflate3d.remote.outcomes import Unreachable

_log = logging.getLogger("inflate3d")
_LATEST = "latest"
_ASK_S = 5.0  # how long a place is asked for a newer version, where there is a copy


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Return where weights are kept: 1. cache_dir  2. INFLATE3D_CACHE  3. $XDG_CACHE_HOME (or ~/.cache) /inflate3d."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if own := os.environ.get("INFLATE3D_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "inflate3d"


def is_offline() -> bool:
    """Whether the environment forbids the network: INFLATE3D_OFFLINE or HF_HUB_OFFLINE."""
    return any(
        os.environ.get(n, "").upper() in ("1", "ON", "YES", "TRUE") for n in ("INFLATE3D_OFFLINE", "HF_HUB_OFFLINE")
    )


def cached_directory(url: str, *, cache_dir: str | Path | None = None, sha256: str | None = None) -> Path:
    """Return the local copy of a directory behind http(s):// or s3://, fetched if there is none or it has changed.

    sha256: what the directory's SHA256SUMS must have (a short name's index says it); a copy of that is used without
    asking. Otherwise the place is asked which version it holds; where it cannot be reached, or offline, the copy seen
    last is used, which the log says. InputError if there is none, or for whatever arrives damaged; Unreachable if there
    is an outage and no copy.
    """
    address = Address.parse(url)
    place = cache_folder(cache_dir) / "weights" / _slug(address)
    if sha256 is not None and (folder := place / sha256[:32]).is_dir():
        return folder
    latest = _seen_last(place, sha256)
    if is_offline():
        if latest is None:
            raise InputError(f"{address}: no copy in {place.parents[1]}, and the environment says: offline")
        return latest
    try:
        sums = read(address / SUMS, limit=most_bytes(SUMS), outage_s=_ASK_S if latest else None)
    except Unreachable as fault:
        if latest is None:
            raise Unreachable(f"no copy in {place.parents[1]}, and {fault}") from fault
        _log.warning("%s; using the copy seen last", fault)
        return latest
    digest = hashlib.sha256(sums).hexdigest()
    if sha256 is not None and digest != sha256:
        raise InputError(
            f"{address}: {SUMS} has sha256 {digest[:16]}..., the index says {sha256[:16]}...: the publication was "
            "replaced. Update the index, or load it by its address"
        )
    folder = place / digest[:32]
    if not folder.is_dir():
        _fetch_all(address, sums, place, folder)
    _note(place, folder)
    return folder


def forget(folder: Path, damaged: Path) -> None:
    """Give up a copy whose file `damaged` is so, and delete that; the others wait where the next load finds them."""
    place = folder.parent
    with FileLock(place / "lock"):
        if not folder.is_dir():  # another process was first
            return
        stated = parse_sums((folder / SUMS).read_text(encoding="utf-8", errors="replace"), where=str(folder / SUMS))
        for name, sha256 in stated.items():
            if (file := folder / name).is_file() and name != damaged.name:
                file.rename(place / f".part-{sha256}")
        shutil.rmtree(folder)


def _fetch_all(address: Address, sums: bytes, place: Path, folder: Path) -> None:
    names = parse_sums(sums.decode("utf-8", "replace"), where=str(address / SUMS))
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise InputError(f"{place}: {fault.strerror}; name another folder: cache_dir= or INFLATE3D_CACHE") from fault
    with FileLock(place / "lock"):
        if folder.is_dir():  # another process was first
            return
        staging = place / ".incoming"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        with told_when_full(place, "Free some, or name another folder: cache_dir= or INFLATE3D_CACHE"):
            for name, sha256 in names.items():
                kept = place / f".part-{sha256}"
                download(address / name, staging / name, partial=kept, sha256=sha256, limit=most_bytes(name))
        (staging / SUMS).write_bytes(sums)
        staging.rename(folder)
        _log.info("fetched %s to %s", address, folder)


def _note(place: Path, folder: Path) -> None:
    latest = place / _LATEST
    if latest.is_file() and latest.read_text(encoding="utf-8") == folder.name:
        return
    temporary = place / f".latest-{os.getpid()}"
    temporary.write_text(folder.name, encoding="utf-8")
    temporary.replace(latest)


def _seen_last(place: Path, sha256: str | None) -> Path | None:
    """Return the copy seen last; None if there is none, or another version is asked for."""
    if sha256 is None and (place / _LATEST).is_file():
        name = (place / _LATEST).read_text(encoding="utf-8")
        if re.fullmatch(r"[0-9a-f]{32}", name) and (place / name).is_dir():
            return place / name
    return None


def _slug(address: Address) -> str:
    """A readable, safe and unique name for a place: nothing of the address is taken as a path, no secret is told."""
    readable = re.sub(r"[^a-z0-9]+", "-", str(address).lower())[-40:].strip("-")
    return f"{readable}-{hashlib.sha256(address.url.encode()).hexdigest()[:12]}"
