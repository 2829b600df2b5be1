"""publish_again: unchanged published weights with later evidence in their card, to the same place or another."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from inflate3d.errors import InputError
from inflate3d.files import file_sha256
from inflate3d.models.create import create_model
from inflate3d.models.publication.fetch import check_directory, published_folder
from inflate3d.models.publication.integrity import plain_file
from inflate3d.models.publication.layout import HEADS, PICTURE, REPLAY, SUMS, WEIGHTS
from inflate3d.models.publication.schema import read_published_config
from inflate3d.publishing.additions import Additions, is_page
from inflate3d.publishing.destination import parse_destination
from inflate3d.publishing.export import Outcome, card_address, deliver_whole, finish, loader_of, refuse_private
from inflate3d.publishing.licences import may_be_published

# What a publication may leave out, but the card needs.
_OPTIONAL = {
    "architecture": "inflate3d",
    "classes": None,
    "heads": {},
    "inputs": {},
    "precision": "float32",
    "private": False,
    "source_weights": None,
    "training": {},
    "versions": dict.fromkeys(("inflate3d", "torch", "timm"), "unknown"),
}


def folder_of(source: str) -> Path:
    """Return the local folder of a publication. InputError if it is not one."""
    if (folder := published_folder(source)) is None:
        raise InputError(
            f"{source!r} does not exist; give a run folder (trainer.default_root_dir), a checkpoint, or an "
            "earlier publication: local-dir:PATH, hf-hub:ORG/NAME, https://HOST/DIR, s3://BUCKET/DIR or a short name"
        )
    return folder


def _pages(folder: Path, names: Any) -> dict[str, bytes]:
    """Return the reports beside a card. Names may come from a stranger: only pages listed in SHA256SUMS.

    InputError for a page that has changed or was not fetched, since loading fetches only what it reads.
    """
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    listed = {name: sha256 for sha256, _, name in (line.partition("  ") for line in lines)}
    pages = {}
    for name in names if isinstance(names, list) else ():
        if not is_page(name) or name not in listed:
            continue
        if not (folder / name).is_file():
            raise InputError(
                f"{folder}: {name} is missing, because loading does not fetch reports; give the card's transfers "
                "again (--transfer), or download the whole directory and publish that"
            )
        page = plain_file(folder, name)
        if file_sha256(page) != listed[name]:
            raise InputError(f"{page} has changed; publish or download the directory again")
        pages[name] = page.read_bytes()
    return pages


def publish_again(
    source: str, destination: str, additions: Additions, *, name: str | None = None, dry_run: bool = False
) -> Outcome:
    """Publish the publication at `source` (an address, or a short name) with another card.

    The net is built and its replay compared before anything is written. Results, notes and reports stay unless new ones
    are given. InputError for a source that is not a publication, is damaged, or may not be published there.
    """
    place = parse_destination(destination)
    folder = folder_of(source)
    stated = check_directory(folder)
    net = create_model(source, pretrained=True)
    config = {**_OPTIONAL, **read_published_config(folder)}
    training = {**config["training"], **additions.to_training(config["training"])}
    pages = additions.reports or _pages(folder, training["reports"])
    training["reports"] = sorted(pages)
    is_private = bool(config["private"]) or not may_be_published(training.get("data", []))
    config = {**config, "training": training, "private": is_private}
    refuse_private(is_private, place)

    def write(staging: Path) -> None:
        for file in (WEIGHTS, HEADS, REPLAY, PICTURE):
            if file in stated:
                shutil.copyfile(folder / file, staging / file)
        parameters = sum(p.numel() for p in net.parameters())
        finish(staging, config, card_address(place, name), parameters=parameters, pages=pages)

    files, changed = deliver_whole(place, write, dry_run=dry_run)
    return Outcome(place.address, place.folder, changed, is_private, files, loader_of(config))
