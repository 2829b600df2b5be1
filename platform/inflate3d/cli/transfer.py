"""`platform transfer MODEL ... --dataset D --task T`: weights against scratch and inflated-only starts on a target."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inflate3d.cli.table import print_table
from inflate3d.errors import InputError

_TEXT = "measure weights on a target against scratch and inflated-only starts, and write a report"
_EPILOG = """\
MODEL     a timm name, or published weights: local-dir:PATH, hf-hub:ORG/NAME, https://HOST/DIR, s3://BUCKET/DIR, or a
          name from inflate3d.list_pretrained(). The baselines scratch and inflated are added by themselves; a timm name
          is its own inflated baseline
--output  transfer.json, results.json (for platform publish --results), plots and report.html. Finished cells are kept
          there: the same command continues, and may add seeds, fractions or modes

platform transfer local-dir:published --root runs/shards --dataset modelnet10 --task volume_classification \\
    --sample '{size: [20, 20, 20], resize: [32, 32, 32]}' --steps 60 --batch_size 32 --output runs/transfer
many machines: platform submit --array 8 --time 4:00:00 -- transfer MODEL ... gives --part 1/8 to 8/8 to eight jobs over
one --output, then runs the same command without --part, which writes the report

Each arm chooses learning rates, penalties and numbers of neighbours on samples held out of train; test samples are read
after the choice. Use more than 3 seeds for useful intervals.
"""


def add_parser(subparsers: Any) -> None:
    """Add `platform transfer`."""
    parser = subparsers.add_parser(
        "transfer",
        help=_TEXT,
        description=_TEXT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="see below")
    parser.add_argument("--dataset", required=True, metavar="NAME", help="its shards are in ROOT/NAME")
    parser.add_argument("--task", required=True, metavar="TASK", help="platform tasks list")
    parser.add_argument("--output", required=True, metavar="DIR", help="see below")
    parser.add_argument("--root", default="runs/shards", metavar="DIR", help="folder of shards (default runs/shards)")
    _add_protocol(parser.add_argument_group("protocol, the same for all arms"))
    parser.add_argument(
        "--head",
        default="",
        metavar="NAME",
        help="published head that fine-tunings of published weights begin as, so that a decoder counts as well as the "
        "backbone (default: a fresh one, as for the baselines)",
    )
    _add_net(parser.add_argument_group("architecture, if MODEL is a timm name"))
    parser.add_argument("--part", metavar="I/N", help="only this part of the cells, for many machines")
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda", help="default: cpu")
    parser.set_defaults(run=_run)


def _add_protocol(group: Any) -> None:
    group.add_argument(
        "--modes", nargs="+", metavar="MODE", help="probe, knn, finetune (default: all that the task has)"
    )
    group.add_argument("--fractions", nargs="+", type=float, metavar="F", help="of the labels (default .01 .1 1)")
    group.add_argument("--seeds", nargs="+", type=int, metavar="S", help="default 0 1 2")
    group.add_argument("--steps", type=int, metavar="N", help="optimiser steps of a fine-tuning (default 300)")
    group.add_argument(
        "--choice_steps", type=int, metavar="N", help="optimiser steps per learning rate that is tried (default: steps)"
    )
    group.add_argument("--batch_size", type=int, metavar="N", help="default 16")
    group.add_argument(
        "--learning_rates", nargs="+", type=float, metavar="LR", help="the grid (default 3e-4 1e-3 3e-3)"
    )
    group.add_argument("--metric", metavar="NAME", help="metric for choices, reported first (default: the task's own)")
    group.add_argument("--target", metavar="NAME", help="which target, where several of the dataset fit the task")
    group.add_argument("--init_args", type=_yaml, metavar="YAML", help="further arguments of the task, as in a config")
    group.add_argument(
        "--val_fraction", type=float, metavar="F", help="share of train held out for choices (default 0.1)"
    )
    group.add_argument("--max_test", type=int, metavar="N", help="at most so many test samples")
    group.add_argument("--sample", type=_yaml, metavar="YAML", help="as data.datasets.NAME.sample in a config")
    group.add_argument("--augment", metavar="FILE", help="list of transforms, as in a config")


def _add_net(group: Any) -> None:
    group.add_argument(
        "--pretrained",
        action="append",
        metavar="[NAME=]FILE",
        help="file of 2D weights, instead of the Hub's; may be repeated, once per NAME",
    )
    group.add_argument("--inflation", default="center", metavar="TAPS", help="mean, center (default) or overshoot")
    group.add_argument("--overshoot", type=float, default=0.25, metavar="A", help="a of overshoot (default 0.25)")
    group.add_argument("--plan", default="auto", help="auto (default), i3d, isotropic, slow or 2d")
    group.add_argument("--timm", type=_yaml, metavar="YAML", help="arguments for timm, such as '{output_stride: 16}'")


def _yaml(text: str) -> dict[str, Any]:
    from inflate3d.document import read_value

    values = read_value(text)
    if not isinstance(values, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a mapping; write it as '{{name: value}}'")
    return values


def _run(args: argparse.Namespace) -> None:
    from inflate3d.data.shards.parts import Part
    from inflate3d.discover import find
    from inflate3d.evaluation.transfer.protocol import Protocol, modes_of

    part = None if args.part is None else Part.parse(args.part)
    task = find("tasks", args.task)
    names = (
        "modes",
        "fractions",
        "seeds",
        "steps",
        "choice_steps",
        "batch_size",
        "learning_rates",
        "metric",
        "target",
        "init_args",
    )
    given = {name: getattr(args, name) for name in (*names, "val_fraction", "max_test", "sample", "augment")}
    options = {"modes": modes_of(task.load().target), **{k: v for k, v in given.items() if v is not None}}
    protocol = Protocol.from_dict({"dataset": args.dataset, "task": task.name, **options})

    from inflate3d.evaluation.transfer.arms import arms_for
    from inflate3d.evaluation.transfer.study import REPORT, TRANSFER, printed, run_transfer
    from inflate3d.evaluation.transfer.target import Target

    target = Target(args.root, protocol)
    arms = arms_for(
        args.models,
        target.card,
        pretrained=_files(args.pretrained or []),
        inflation=args.inflation,
        overshoot=args.overshoot,
        plan=args.plan,
        datasets=target.data.net_inputs,
        timm_kwargs=args.timm,
        head=args.head,
    )
    splits = target.splits()
    print(f"{target.card.title}: {splits['fit']} to train, {splits['choice']} for choices, {splits['test']} to test")
    print(f"arms: {', '.join(arm.name for arm in arms)}", flush=True)
    result = run_transfer(arms, target, args.output, part=part, device=args.device, report=printed(target.metric))
    if part is not None:
        print(f"part {args.part} is done; when all parts are, run the same command without --part to write the report")
        return
    _print(result)
    print(f"numbers: {Path(args.output) / TRANSFER}\nreport:  {Path(args.output) / REPORT}")


def _files(given: Sequence[str]) -> dict[str, str]:
    files = {}
    for one in given:
        name, _, file = one.rpartition("=")
        if not Path(file).is_file():
            raise InputError(f"--pretrained {one}: no file {file!r}; give a file of 2D weights, or NAME=FILE")
        files[name] = file
    return files


def _print(result: Mapping[str, Any]) -> None:
    from inflate3d.evaluation.transfer.arms import is_compared

    rows = []
    for row in result["rows"]:
        low, high = row["low"], row["high"]
        interval = "" if low is None else f"{low:.3f} to {high:.3f}"
        against = [
            f"{d['value']:+.3f} on {name} (p {d['p']:.3f})"
            for name, d in row["against"].items()
            if is_compared(row["arm"], name)
        ]
        share = f"{row['fraction']:.0%}"
        std = f"{row['std']:.3f}" if len(row["seeds"]) > 1 else ""
        told = (row["mode"], share, row["arm"], f"{row['value']:.3f}", interval, std, len(row["seeds"]))
        rows.append((*told, "; ".join(against)))
    print(f"\n{result['metric']} on {result['splits']['test']} test samples")
    print_table(("mode", "labels", "arm", "mean", "95 % interval", "std", "seeds", "against"), rows)
    cells = result["cells"]
    if cells["finished"] < cells["of"]:
        print(f"{cells['finished']} of {cells['of']} cells are finished; run the same command again or the other parts")
