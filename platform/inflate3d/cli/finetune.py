"""`platform finetune FOLDER`: from a folder of one's own to scores and published weights, with the config written."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inflate3d.errors import InputError

if TYPE_CHECKING:
    from inflate3d.cli.run import Run
    from inflate3d.planning.fingerprint import Fingerprint
    from inflate3d.planning.layouts import Layout

MODEL = "tf_efficientnet_lite0_3d.v2"
_ASKED = "# asked: "
_EPILOG = """\
It looks, plans, asks, trains, scores and publishes; --yes does not ask, and --dry-run writes the config alone: read it,
change it, then platform fit --config FILE.

FOLDER is one of: nnU-Net's raw layout; a task of the Medical Segmentation Decathlon; images/ and masks/ of NIfTI files
under the same names; volumes beside a CSV with the columns image and label (or mask, or numbers); a folder of NIfTI
files a class; a folder of videos a class.
An argument of the dataset can be given too: --group_pattern '(sub-[^/]+)', --modality ct, --val_fraction 0.3
  (platform datasets show NAME).
The same command again goes on where it stopped, from the config that it wrote.
"""


def add_parser(subparsers: Any) -> None:
    """Add `platform finetune`."""
    text = "one command on a folder of your own: looks at it, plans, trains, scores and publishes"
    parser = subparsers.add_parser(
        "finetune",
        help=text,
        description=text,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="platform finetune FOLDER [--minutes N] [--model NAME] [--output DIR] [--yes | --dry-run]",
    )
    parser.add_argument("folder", metavar="FOLDER", help="your cases; see below")
    parser.add_argument("--minutes", type=float, default=30, metavar="N", help="of training, at most (default 30)")
    parser.add_argument(
        "--model", default=MODEL, metavar="NAME", help=f"the start: any name of create_model (default {MODEL})"
    )
    parser.add_argument("--output", metavar="DIR", help="the run's folder (default runs/finetune_FOLDER)")
    parser.add_argument("--dataset", metavar="NAME", help="how to read FOLDER, where it does not tell by itself")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="write the config, and stop")
    parser.set_defaults(run=_run, takes_overrides=True)


def _run(args: argparse.Namespace) -> None:
    from inflate3d.training.steering import stop_signals

    if args.minutes <= 0:
        raise InputError(f"--minutes is {args.minutes:g}; it must be above 0")
    started = time.monotonic()
    output = args.output or f"runs/finetune_{Path(args.folder).absolute().name}"
    config = Path(output) / "finetune.yaml"
    asked = {key: getattr(args, key) for key in ("folder", "minutes", "model", "dataset")} | {"more": args.overrides}
    asked["folder"] = str(Path(args.folder).expanduser().absolute())
    if config.is_file():
        _check_asked(config, asked)
        print(f"goes on with {config}", flush=True)
    else:
        _write_config(config, asked, output)
    if args.dry_run:
        print(f"start it: platform finetune {shlex.quote(args.folder)} ..., or platform fit --config {config}")
        return
    if not args.yes and not _agreed(config):
        return
    handlers = stop_signals.listen()  # before anything slow: an unhandled signal ends a process silently
    try:
        _carry_out(config, Path(output), started)
    finally:
        stop_signals.restore(handlers)


# ------------------------------------------------------------------------------------------------------------ planning


def _write_config(config: Path, asked: dict[str, Any], output: str) -> None:
    """Look at the folder, say what was found, plan, and write the config."""
    layout = _layout(asked)
    from inflate3d.cli.fingerprint_table import print_fingerprint
    from inflate3d.files import write_whole
    from inflate3d.planning.chosen import as_yaml
    from inflate3d.planning.fingerprint import measure

    print(f"{asked['folder']}: {layout.plug_in.name}, {layout.plug_in.summary}", flush=True)
    found = measure(layout.dataset())
    print_fingerprint(found)
    text = as_yaml(_plan(found, layout, asked, output))
    config.parent.mkdir(parents=True, exist_ok=True)
    write_whole(config, (_head(config, found, asked) + text).encode())
    print(f"\nplan, with the reason of each value: {config}")
    print(text)


def _layout(asked: dict[str, Any]) -> Layout:
    """Return how the folder is read, with the dataset's arguments that were given."""
    from dataclasses import replace

    from inflate3d.cli.dataset_arguments import given_arguments
    from inflate3d.planning.layouts import recognised

    layout = recognised(asked["folder"], name=asked["dataset"])
    own = ("minutes", "model", "output", "dataset", "yes", "dry-run")
    arguments = given_arguments(layout.plug_in, asked["more"], layout.arguments, command="finetune", own=own)
    return replace(layout, arguments=arguments)


def _plan(found: Fingerprint, layout: Layout, asked: dict[str, Any], output: str) -> Any:
    """Measure the net and the machine, and plan."""
    from inflate3d.cli.timm_names import check_model_name
    from inflate3d.planning.net_cost import measure_fitting_net, memory_at_hand
    from inflate3d.planning.plan import Budget, plan_run, planned_grid, trained_targets
    from inflate3d.planning.starts import fitting_head

    check_model_name(asked["model"], where="--model")
    targets = [found.card.targets[name] for name in trained_targets(found)]
    if not targets:
        raise InputError(
            f"{asked['folder']}: nothing is known of its {found.card.media}s (no labels, masks or numbers); "
            "to train without labels: platform configs show label_free.yaml"
        )
    if not {"val", "test"} & found.splits.keys():
        raise InputError(
            f"{asked['folder']}: all {found.splits['train']} cases are for training, so nothing could be scored; give "
            "some the split val or test, or hold some out: --val_fraction 0.2"
        )
    grid = planned_grid(found, layout)
    classes = next((len(target.answers) for target in targets if target.per_voxel), None)
    print(f"\nmeasuring {asked['model']} on this machine ...", flush=True)
    cost = measure_fitting_net(asked["model"], size=grid.size, spacing_mm=grid.spacing_mm, num_classes=classes)
    budget = Budget(memory_at_hand(), asked["minutes"], len(os.sched_getaffinity(0)))
    head = fitting_head(asked["model"], targets[0]) if len(targets) == 1 else None
    if head:
        print(f"the run begins with the published head {head.value!r}: {head.reason}")
    return plan_run(found, layout, grid, cost, budget, model=asked["model"], start_head=head, output=output)


def _head(config: Path, found: Fingerprint, asked: dict[str, Any]) -> str:
    splits = ", ".join(f"{count} {split}" for split, count in found.splits.items())
    return (
        f"# Fine-tuning on {found.card.name}: {found.card.title}.\n#\n"
        f"# goal:      held-out scores and published weights of {splits} cases\n"
        f"# command:   platform fit --config {config}\n"
        f"# planned by platform finetune from {len(found.shapes_DHW)} training cases that were read\n"
        f"{_ASKED}{json.dumps(asked)}\n"
    )


def _check_asked(config: Path, asked: dict[str, Any]) -> None:
    """Refuse to go on with a plan that was made for another request."""
    line = next((t for t in config.read_text(encoding="utf-8").splitlines() if t.startswith(_ASKED)), None)
    before = json.loads(line.removeprefix(_ASKED)) if line else {}
    changes = [f"{k} was {before.get(k)!r}, is now {v!r}" for k, v in asked.items() if before.get(k) != v]
    if changes:
        raise InputError(
            f"{config} was planned for another request: {'; '.join(changes)}. Give --output ANOTHER, remove "
            f"{config.parent}, or go on with that plan: platform fit --config {config}"
        )


def _agreed(config: Path) -> bool:
    """Ask whether to start. InputError where there is nobody to ask."""
    if not sys.stdin.isatty():
        raise InputError(f"there is no terminal to ask at; the plan is {config}. Start it: the same command with --yes")
    if input("start? [Y/n] ").strip().lower() in ("", "y", "yes"):
        return True
    print(f"not started; change {config} as you like, then run the same command again")
    return False


# ------------------------------------------------------------------------------------------------------------- running


def _carry_out(config: Path, output: Path, started: float) -> None:
    """Build, fit, score, publish, and say how to go on."""
    from inflate3d.cli.check import check_config
    from inflate3d.cli.config import load_config
    from inflate3d.cli.publish import print_outcome

    loaded = load_config([str(config)])
    check_config(loaded)
    from inflate3d.cli.run import Run
    from inflate3d.publishing.from_run import publish_run

    run = Run(loaded)
    run.fit(say_next=False)
    _print_scores(run, started)
    outcome = publish_run(output, f"local-dir:{output / 'published'}", with_heads=True)
    print_outcome(outcome, dry_run=False)
    published = shlex.quote(str(output / "published"))
    print(f"on new files: platform predict {published} --input FILES --output predictions")


def _print_scores(run: Run, started: float) -> None:
    """Score the best checkpoint on the test split, or on the validation split where there is none."""
    from inflate3d.cli.table import print_table

    has_test = all(manifest.num_samples("test") for manifest in run.data.manifests.values())
    scores = run.scores("test" if has_test else "val")
    print()
    print_table(("score of the best checkpoint", "value"), [(key, f"{value:.3f}") for key, value in scores.items()])
    if not has_test:
        print("on the validation cases, which also chose the checkpoint: new cases may score lower")
    print(f"{time.monotonic() - started:.0f} seconds since the start of this command", flush=True)
