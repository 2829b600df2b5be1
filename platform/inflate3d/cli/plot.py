"""`platform plot curves|samples RUN`: a run's curves, and what its checkpoint predicts, as pictures."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add `platform plot`."""
    text = "draw a run: its curves, predicted masks and clips"
    parser = subparsers.add_parser("plot", help=text, description=text)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    curves = commands.add_parser("curves", help="losses and metrics over the steps, from metrics.csv")
    curves.set_defaults(run=_curves)
    samples = commands.add_parser(
        "samples", help="curves, and predictions on validation samples; wants the run's shards"
    )
    samples.add_argument("--checkpoint", choices=("best", "last"), default="best", help="default: best")
    samples.add_argument("--per_dataset", type=int, default=3, metavar="N", help="samples of each dataset (default 3)")
    samples.set_defaults(run=_samples)
    for command in (curves, samples):
        command.add_argument("folder", metavar="RUN", help="a run folder (trainer.default_root_dir)")


def _curves(args: argparse.Namespace) -> None:
    from inflate3d.evaluation import plot_curves

    print(f"picture: {plot_curves(args.folder)}")


def _samples(args: argparse.Namespace) -> None:
    from inflate3d.evaluation import draw_run

    print(f"picture: {draw_run(args.folder, which=args.checkpoint, per_dataset=args.per_dataset)}")
