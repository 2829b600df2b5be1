"""`platform publish SOURCE --output DEST`: the backbone of a run, as a directory that create_model loads."""

from __future__ import annotations

import argparse
from typing import Any

_EPILOG = """\
SOURCE    a run folder, or one of its checkpoints/step-*; or an earlier publication (its folder, local-dir:PATH,
          hf-hub:ORG/NAME, https://HOST/DIR, s3://BUCKET/DIR, a short name): its weights go to DEST
          unchanged, with --results, --transfer and --notes added to the card
--heads-of  of a publication alone: a run that began from it with its backbone frozen (model.freeze: {backbone: null}),
          or what was published of that with --heads; weights stay to the bit, its datasets become domains;
          --domain may make one of them the net's own
--interpolate  of a run alone: theta0 + ALPHA (theta - theta0), of weights and statistics, every stem and domain;
          theta0 is made again from the 2D weights or the publication that the run began from; theta is the EMA's
          average where the run has one. Not with --heads, which were trained on theta
--recalibrate  of a run alone: a dataset of the run, its shards in --root (default: data.root of the run)
--output  local-dir:PATH (or a plain path), hf-hub:ORG/NAME[@BRANCH], s3://BUCKET/DIR
Publishing the same content again changes nothing. A local folder appears by a rename. A commit to the Hub is complete
or does not happen. On s3 SHA256SUMS comes last; until it is there, loading is refused.
"""


def add_parser(subparsers: Any) -> None:
    """Add `platform publish`."""
    text = "write a run's backbone as a directory that inflate3d.create_model loads"
    parser = subparsers.add_parser(
        "publish", help=text, description=text, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", help="a run, a checkpoint, or an earlier publication; see below")
    parser.add_argument(
        "--interpolate",
        type=float,
        metavar="ALPHA",
        help="go so far from the run's start (0) to the trained weights (1, the default); statistics likewise",
    )
    parser.add_argument(
        "--heads-of",
        metavar="OTHER",
        help="the heads of another run or publication beside the publication's own; see below",
    )
    add_run_arguments(parser)
    add_card_arguments(parser)
    parser.set_defaults(run=_run)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says which weights and statistics are meant."""
    parser.add_argument("--checkpoint", choices=("best", "last"), help="for a run folder (default: best)")
    parser.add_argument(
        "--domain",
        metavar="DATASET",
        help="dataset whose stem and norm statistics are the net's own (default: the first)",
    )
    parser.add_argument(
        "--recalibrate",
        action="append",
        metavar="DATASET[:SPLIT]",
        help="compute a dataset's running statistics again, from 512 unlabelled samples of train (default) or val; "
        "may be repeated",
    )
    parser.add_argument("--root", metavar="DIR", help="folder of shards for --recalibrate")


def add_card_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where a publication goes, in which form, and what its card says."""
    parser.add_argument("--output", required=True, metavar="DEST", help="see below")
    parser.add_argument(
        "--heads",
        action="store_true",
        help="classifiers and segmenters too, with class names, for create_model and create_segmenter",
    )
    parser.add_argument(
        "--transfer",
        action="append",
        metavar="DIR",
        help="output of a platform transfer: its table goes into the card, its report beside it; may be repeated",
    )
    parser.add_argument("--results", metavar="FILE", help="JSON list of {start, metric, mean, std, runs} for the card")
    parser.add_argument(
        "--notes", metavar="FILE", help="Markdown for the card: what the weights are good for, and what not"
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "float16"),
        help="of kernels and matrices in the files (default: float32); all load as float32",
    )
    parser.add_argument("--name", metavar="NAME", help="short name that an index gives the weights, for the card")
    parser.add_argument("--dry-run", action="store_true", help="make everything and compare, but write nothing to DEST")


def _run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from inflate3d.errors import InputError
    from inflate3d.publishing.additions import read_additions
    from inflate3d.publishing.destination import is_publication, parse_destination

    # First refuse what can be refused without torch.
    parse_destination(args.output)
    folder = Path(args.source)
    is_run = folder.is_dir() and not is_publication(folder)
    of_runs = {"checkpoint", "domain", "heads", "precision", "interpolate", "recalibrate", "root"}
    if args.heads_of is not None:
        if is_run:
            raise InputError(f"--heads-of adds to a publication; publish {args.source} first, without --heads-of")
        of_runs -= {"checkpoint", "precision", "domain"}
    if not is_run and (given := [f"--{name}" for name in sorted(of_runs) if getattr(args, name) not in (None, False)]):
        raise InputError(f"{args.source} is not a run folder or checkpoint; {', '.join(given)} needs one")
    additions = read_additions(results=args.results, notes=args.notes, transfers=args.transfer or [])
    if is_run:
        from inflate3d.publishing.from_run import publish_run

        outcome = publish_run(
            folder,
            args.output,
            which=args.checkpoint or "best",
            domain=args.domain,
            with_heads=args.heads,
            interpolate=1.0 if args.interpolate is None else args.interpolate,
            recalibrate=args.recalibrate or (),
            root=args.root,
            additions=additions,
            precision=args.precision or "float32",
            name=args.name,
            dry_run=args.dry_run,
        )
        print_outcome(outcome, dry_run=args.dry_run)
        return
    from inflate3d.models.publication.layout import PREFIX

    source = f"{PREFIX}{folder}" if folder.is_dir() else args.source
    if args.heads_of is not None:
        from inflate3d.publishing.joined_heads import publish_with_heads

        outcome = publish_with_heads(
            source,
            args.heads_of,
            args.output,
            which=args.checkpoint or "best",
            domain=args.domain,
            additions=additions,
            precision=args.precision or "float32",
            name=args.name,
            dry_run=args.dry_run,
        )
    else:
        from inflate3d.publishing.again import publish_again

        outcome = publish_again(source, args.output, additions, name=args.name, dry_run=args.dry_run)
    print_outcome(outcome, dry_run=args.dry_run)


def print_outcome(outcome: Any, *, dry_run: bool) -> None:
    """Say what was published where, whether it is private, and how it is loaded."""
    place = outcome.folder or outcome.address
    if dry_run:
        print("would change nothing:" if not outcome.changed else "would publish:", place)
        for name, size in outcome.files.items():
            print(f"  {size:>12,} {name}")
    else:
        print(f"published: {place}" + ("" if outcome.changed else " (nothing changed)"))
    if outcome.is_private:
        print(
            "marked private, for this machine only: a dataset's card does not say that weights trained on it may be "
            "published (see README.md there). Your own data: build.init_args weights_may_be_published and licence"
        )
    if not dry_run:
        print(f"load it: inflate3d.{outcome.loader}('{outcome.address}', pretrained=True)")
