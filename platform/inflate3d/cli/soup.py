"""`platform soup MEMBER ... --output DEST`: the average of several runs or publications, as a publication."""

from __future__ import annotations

import argparse
from typing import Any

from inflate3d.cli.publish import add_card_arguments, add_run_arguments, print_outcome

_TEXT = "publish the average of several runs or publications of one kind (a model soup)"
_EPILOG = """\
MEMBER    a run folder, one of its checkpoints/step-*, or a publication (its folder, local-dir:PATH, hf-hub:ORG/NAME)
--output  local-dir:PATH (or a plain path), hf-hub:ORG/NAME[@BRANCH], s3://BUCKET/DIR
Members have the same net, plan, norms, domains, inputs and 2D weights; what differs is named. Only members that began
from the same weights can be averaged: seeds, or settings, of one recipe. Licences are computed over the data of all.
--heads   heads are averaged too: for members whose heads began alike (model.start_heads); otherwise leave it out
--recalibrate  a dataset of the members, its shards in --root (default: runs/shards)

platform soup runs/seed0 runs/seed1 runs/seed2 --output local-dir:runs/soup
"""


def add_parser(subparsers: Any) -> None:
    """Add `platform soup`."""
    parser = subparsers.add_parser(
        "soup", help=_TEXT, description=_TEXT, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("members", nargs="+", metavar="MEMBER", help="see below")
    parser.add_argument(
        "--weights", nargs="+", type=float, metavar="W", help="one a member, of any sum (default: all equal)"
    )
    add_run_arguments(parser)
    add_card_arguments(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from inflate3d.publishing.additions import read_additions
    from inflate3d.publishing.destination import parse_destination

    parse_destination(args.output)
    additions = read_additions(results=args.results, notes=args.notes, transfers=args.transfer or [])

    from inflate3d.publishing.soup import publish_soup

    outcome = publish_soup(
        args.members,
        args.output,
        weights=args.weights,
        which=args.checkpoint or "best",
        domain=args.domain,
        with_heads=args.heads,
        recalibrate=args.recalibrate or (),
        root=args.root or "runs/shards",
        additions=additions,
        precision=args.precision or "float32",
        name=args.name,
        dry_run=args.dry_run,
    )
    print_outcome(outcome, dry_run=args.dry_run)
