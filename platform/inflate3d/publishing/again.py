"""publish_again: published weights as they are, with what was learnt of them since, to the same place or another."""

from __future__ import annotations

import shutil
from pathlib import Path

from inflate3d.errors import InputError
from inflate3d.models.config_schema import read_config
from inflate3d.models.create import create_model
from inflate3d.models.fetch import check_directory, published_folder
from inflate3d.models.layout import HEADS, PICTURE, REPLAY, WEIGHTS
from inflate3d.publishing.additions import Additions
from inflate3d.publishing.destination import parse_destination
from inflate3d.publishing.export import Outcome, card_address, deliver_whole, finish, loader_of, refuse_private


def folder_of(source: str) -> Path:
    """Return the local folder of a publication. InputError if it is none."""
    if (folder := published_folder(source)) is None:
        raise InputError(
            f"{source!r} does not exist; give a run folder (trainer.default_root_dir), a checkpoint, or what was "
            "published: local-dir:PATH, hf-hub:ORG/NAME, https://HOST/DIR, s3://BUCKET/DIR or a short name"
        )
    return folder


def publish_again(
    source: str, destination: str, additions: Additions, *, name: str | None = None, dry_run: bool = False
) -> Outcome:
    """Publish the publication at `source` (an address, or a short name) with another card.

    The net is built and its replay compared before anything is written. What is not given anew of results, notes and
    reports stays. InputError for a source that is no publication, is damaged, or may not go there.
    """
    place = parse_destination(destination)
    folder = folder_of(source)
    stated = check_directory(folder)
    net = create_model(source, pretrained=True)
    config = read_config(folder)
    training = {**config["training"], **additions.to_training(config["training"])}
    config = {**config, "training": training}
    refuse_private(bool(config.get("private")), place)
    kept = {report: (folder / report).read_bytes() for report in training["reports"] if report not in additions.reports}

    def write(staging: Path) -> None:
        for file in (WEIGHTS, HEADS, REPLAY, PICTURE):
            if file in stated:
                shutil.copyfile(folder / file, staging / file)
        parameters = sum(p.numel() for p in net.parameters())
        finish(staging, config, card_address(place, name), parameters=parameters, pages={**kept, **additions.reports})

    files, changed = deliver_whole(place, write, dry_run=dry_run)
    return Outcome(place.address, place.folder, changed, bool(config.get("private")), files, loader_of(config))
