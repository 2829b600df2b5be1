"""Delivers a finished directory complete or not at all; an equal one at the destination is left untouched."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from inflate3d.errors import InputError
from inflate3d.models.publication.integrity import check_files
from inflate3d.models.publication.layout import EXAMPLE, SUMS, most_bytes
from inflate3d.models.publication.places import parse_hub
from inflate3d.publishing.destination import Destination, destination_folder, is_publication
from inflate3d.remote.address import Address, scrubbed
from inflate3d.remote.client import read
from inflate3d.remote.outcomes import Absent
from inflate3d.remote.store import filesystem


def is_there(staging: Path, destination: Destination) -> bool:
    """Whether the destination already holds these files; in a local folder they are read, not only their sums."""
    if _sums_at(destination) != (staging / SUMS).read_bytes():
        return False
    try:
        return destination.folder is None or bool(check_files(destination.folder))
    except InputError:
        return False


def deliver(staging: Path, destination: Destination) -> None:
    """Bring the files of `staging` to the destination. InputError if it cannot be reached or written."""
    {"local": _to_folder, "hub": _to_hub, "s3": _to_s3}[destination.kind](staging, destination)


def _sums_at(destination: Destination) -> bytes | None:
    if destination.folder is not None:
        file = destination.folder / SUMS
        return file.read_bytes() if is_publication(destination.folder) and file.is_file() else None
    if destination.kind == "s3":
        with suppress(Absent):
            return read(Address.parse(destination.address) / SUMS, limit=most_bytes(SUMS))
        return None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    place = parse_hub(destination.address)
    try:
        return Path(hf_hub_download(place.repository, SUMS, revision=place.revision)).read_bytes()
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
        return None


def _to_folder(staging: Path, destination: Destination) -> None:
    """Rename the whole directory into place; an older publication is aside meanwhile, in a folder of our own."""
    folder = destination.folder
    assert folder is not None
    if not is_publication(folder):
        if folder.is_dir():
            folder.rmdir()
        staging.rename(folder)
        return
    destination_folder(str(folder))  # once more: a file may have come since
    aside = Path(tempfile.mkdtemp(prefix=f".old-{folder.name}-", dir=folder.parent))
    folder.rename(aside / folder.name)
    staging.rename(folder)
    shutil.rmtree(aside)


def _to_hub(staging: Path, destination: Destination) -> None:
    """Create the repository if needed, and put all files there in one commit, complete or not at all."""
    from huggingface_hub import HfApi

    place, api = parse_hub(destination.address), HfApi(library_name="inflate3d")
    try:
        api.create_repo(place.repository, exist_ok=True)
        if place.revision:
            api.create_branch(place.repository, branch=place.revision, exist_ok=True)
        api.upload_folder(
            repo_id=place.repository,
            folder_path=staging,
            revision=place.revision,
            commit_message="Publish with inflate3d",
            delete_patterns=["*.safetensors", "*.json", "*.md", "*.png", "*.html", EXAMPLE, SUMS],
        )
    except Exception as fault:  # the client's transport raises its own exceptions
        raise _failed(destination, fault, "Are you logged in (hf auth login), and do you have write access?") from fault


def _to_s3(staging: Path, destination: Destination) -> None:
    """Upload beside the final names, copy to them, SHA256SUMS last; until it is there, loading is refused."""
    system, path = filesystem(Address.parse(destination.address))
    aside = f"{path}/.upload-{hashlib.sha256((staging / SUMS).read_bytes()).hexdigest()[:16]}"
    names = sorted(file.name for file in staging.iterdir())
    names.remove(SUMS)
    try:
        for name in [*names, SUMS]:
            system.put_file(str(staging / name), f"{aside}/{name}")
        for name in [*names, SUMS]:
            system.copy(f"{aside}/{name}", f"{path}/{name}")
    except Exception as fault:  # botocore and sockets raise dozens of exceptions
        raise _failed(destination, fault, "Do you have write access?") from fault
    finally:
        with suppress(Exception):
            system.rm(aside, recursive=True)


def _failed(destination: Destination, fault: Exception, question: str) -> InputError:
    reason = scrubbed(fault) or type(fault).__name__
    return InputError(
        f"--output {destination.address}: cannot be written ({reason}); nothing was published. {question}"
    )
