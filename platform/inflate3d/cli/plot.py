"""`platform plot`: a run's curves and predictions, the first filters over time, and a plan, as pictures."""

from __future__ import annotations

import argparse
from typing import Any

from inflate3d.cli.plan_arguments import PLAN_HELP, add_size_arguments, planned_net, read_plan, shown_size

_FILTERS = """\
MODEL     a run folder; published weights (a name from list_pretrained(), local-dir:PATH, hf-hub:ORG/NAME, ...);
          or a 2D name of timm or torchvision, whose weights are inflated
A run and published weights have two rows for each stem: before training (the 2D weights, inflated) and after. Slices
are side by side along D. Each row is scaled by its own largest value; mid grey is 0.
"""


def add_parser(subparsers: Any) -> None:
    """Add `platform plot`."""
    text = "draw a run's curves, predicted masks and clips, the first filters over time, or a temporal plan"
    parser = subparsers.add_parser("plot", help=text, description=text)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    curves = commands.add_parser("curves", help="losses and metrics over the steps, from metrics.csv")
    curves.set_defaults(run=_curves)
    samples = commands.add_parser(
        "samples", help="curves, and predictions on validation samples; needs the run's shards"
    )
    _add_checkpoint(samples)
    samples.add_argument("--per_dataset", type=int, default=3, metavar="N", help="samples of each dataset (default 3)")
    samples.set_defaults(run=_samples)
    for command in (curves, samples):
        command.add_argument("folder", metavar="RUN", help="a run folder (trainer.default_root_dir)")
    _add_filters(commands)
    _add_plan(commands)


def _add_filters(commands: Any) -> None:
    filters = commands.add_parser(
        "filters",
        help="all filters of the first convolution over time, before and after training (Fig. 4 of the I3D paper)",
        epilog=_FILTERS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    filters.add_argument("model", metavar="MODEL", help="a run folder, published weights or a 2D name; see below")
    _add_checkpoint(filters)
    filters.add_argument(
        "--weights_2d", metavar="FILE", help="file of the 2D weights, if they have moved or cannot be downloaded"
    )
    filters.add_argument("--inflation", default="center", help="for a 2D name: mean, center, overshoot or random")
    filters.add_argument("--plan", default="auto", help=f"for a 2D name: {PLAN_HELP}")
    filters.add_argument("--output", metavar="FILE.png", help="default: filters.png in the run, filters-MODEL.png here")
    filters.set_defaults(run=_filters)


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser(
        "plan", help="a net's levels under one or more plans: the map's D x H x W, kernels and strides"
    )
    plan.add_argument("name", metavar="NAME", help="a 2D name of timm or torchvision")
    plan.add_argument("--plan", default=["auto"], nargs="+", help=f"one row per plan: {PLAN_HELP}")
    add_size_arguments(plan)
    plan.add_argument("--output", metavar="FILE.png", help="default: plan-NAME.png here")
    plan.set_defaults(run=_plan)


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="for a run (default: best)")


def _curves(args: argparse.Namespace) -> None:
    from inflate3d.evaluation import plot_curves

    print(f"picture: {plot_curves(args.folder)}")


def _samples(args: argparse.Namespace) -> None:
    from inflate3d.evaluation import draw_run

    print(f"picture: {draw_run(args.folder, which=args.checkpoint, per_dataset=args.per_dataset)}")


def _filters(args: argparse.Namespace) -> None:
    from inflate3d.evaluation.pictures.filters import plot_filters

    picture, missing = plot_filters(
        args.model,
        args.output,
        checkpoint=args.checkpoint,
        weights_2d=args.weights_2d,
        inflation=args.inflation,
        plan=read_plan(args.plan),
    )
    if missing:
        print(f"no row before training: {missing}\nGive the 2D weights, if you have them: --weights_2d FILE")
    print(f"picture: {picture}")


def _plan(args: argparse.Namespace) -> None:
    from pathlib import Path

    from inflate3d.cli.timm_names import check_model_name

    check_model_name(args.name, where="platform plot plan")
    nets = [planned_net(plan, args) for plan in args.plan]
    size: Any = shown_size(nets[0], args)

    from inflate3d.evaluation.pictures.plan_diagram import PlanRow, plot_plan
    from inflate3d.models.outline import outline_of

    rows = [PlanRow(f"plan {net.plan}", outline_of(net, size)) for net in nets]
    path = Path(args.output or f"plan-{args.name.replace('/', '-')}.png")
    print(f"picture: {plot_plan(rows, path, title=args.name, input_size=size)}")
