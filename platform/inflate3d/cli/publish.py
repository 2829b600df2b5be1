"""`platform publish RUN_OR_CKPT --output DEST`: the backbone of a run, as a directory that create_model loads."""

from __future__ import annotations

import argparse
from typing import Any

_EPILOG = """\
--output  local-dir:PATH (or a plain path), hf-hub:ORG/NAME[@BRANCH], s3://BUCKET/DIR
The same content again changes nothing. A local folder appears by a rename, a commit to the Hub is whole or not at all,
and on s3 SHA256SUMS comes last: until it is there, loading is refused.
"""


def add_parser(subparsers: Any) -> None:
    """Add `platform publish`."""
    text = "write a run's backbone as a directory that inflate3d.create_model loads"
    parser = subparsers.add_parser(
        "publish", help=text, description=text, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_or_ckpt", metavar="RUN_OR_CKPT", help="a run folder, or one of its checkpoints/step-*")
    parser.add_argument("--output", required=True, metavar="DEST", help="see below")
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="of a run folder (default: best)"
    )
    parser.add_argument(
        "--domain", metavar="DATASET", help="whose stem and norm statistics stand first (default: the first)"
    )
    parser.add_argument(
        "--heads",
        action="store_true",
        help="classifiers and segmenters too, with the names of their classes, for create_model and create_segmenter",
    )
    parser.add_argument("--results", metavar="FILE", help="JSON list of {start, metric, mean, std, runs} for the card")
    parser.add_argument("--notes", metavar="FILE", help="Markdown for the card: what the weights are good for, and not")
    parser.add_argument(
        "--precision",
        choices=("float32", "float16"),
        default="float32",
        help="of kernels and matrices in the files (default: float32); loaded, all are float32",
    )
    parser.add_argument("--name", metavar="NAME", help="the short name that an index gives them, for the card")
    parser.add_argument("--dry-run", action="store_true", help="make everything, compare, and write nothing there")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from inflate3d.errors import InputError
    from inflate3d.publishing.destination import parse_destination

    # What can be refused without torch is refused first.
    parse_destination(args.output)
    if not Path(args.run_or_ckpt).is_dir():
        raise InputError(
            f"{args.run_or_ckpt} does not exist; give a run folder (trainer.default_root_dir) or a checkpoint"
        )

    from inflate3d.publishing.run import publish_run

    outcome = publish_run(
        args.run_or_ckpt,
        args.output,
        which=args.checkpoint,
        domain=args.domain,
        with_heads=args.heads,
        results=args.results,
        notes=args.notes,
        precision=args.precision,
        name=args.name,
        dry_run=args.dry_run,
    )
    place = outcome.folder or outcome.address
    if args.dry_run:
        print("would change nothing:" if not outcome.changed else "would publish:", place)
        for name, size in outcome.files.items():
            print(f"  {size:>12,} {name}")
    else:
        print(f"published: {place}" + ("" if outcome.changed else " (nothing changed)"))
    if outcome.is_private:
        print(
            "marked private, for this machine alone: a dataset's card does not say that weights trained on it may be "
            "published (see README.md there). Your own data: build.init_args weights_may_be_published and licence"
        )
    if not args.dry_run:
        print(f"load it: inflate3d.{outcome.loader}('{outcome.address}', pretrained=True)")
