"""`platform publish RUN_OR_CKPT --output DEST`: the backbone of a run, as a directory that create_model loads."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add `platform publish`."""
    text = "write a run's backbone as a directory that inflate3d.create_model loads"
    parser = subparsers.add_parser("publish", help=text, description=text)
    parser.add_argument("run_or_ckpt", metavar="RUN_OR_CKPT", help="a run folder, or one of its checkpoints/step-*")
    parser.add_argument("--output", required=True, metavar="DEST", help="local-dir:PATH, or a plain path")
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="of a run folder (default: best)"
    )
    parser.add_argument(
        "--domain", metavar="DATASET", help="whose stem and norm statistics stand first (default: the first)"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    import warnings
    from pathlib import Path

    from inflate3d.errors import InputError
    from inflate3d.publishing.destination import destination_folder

    # What can be refused without torch is refused first.
    destination_folder(args.output)
    if not Path(args.run_or_ckpt).is_dir():
        raise InputError(
            f"{args.run_or_ckpt} does not exist; give a run folder (trainer.default_root_dir) or a checkpoint"
        )

    from inflate3d.models.layout import PRIVATE
    from inflate3d.publishing.run import publish_run

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # said below
        folder = publish_run(args.run_or_ckpt, args.output, which=args.checkpoint, domain=args.domain)
    print(f"published: {folder}")
    if (folder / PRIVATE).exists():
        print("marked private: the card of a dataset forbids publishing weights trained on it (see its README.md)")
    print(f"load it: inflate3d.create_model('local-dir:{folder}', pretrained=True)")
