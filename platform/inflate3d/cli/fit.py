"""`platform fit|validate|test --config FILE`: merge, check, build the run with LightningCLI, and carry it out."""

from __future__ import annotations

import argparse
from typing import Any

from inflate3d.cli.first_process import is_first_process

_EPILOG = """\
Every option of the config can be overridden: --trainer.max_steps 10  --data.datasets.k400.weight 3
  --model.tasks.liver.loss_weight 0.5  --model.optimizer.lr 1e-3
Several --config files are merged by key, from left to right; null deletes an entry.
A bare file name is looked up in the working folder, then among `platform configs list`.
Run the same command again to continue in its run folder (trainer.default_root_dir).
"""
_HELP = {
    "fit": "train on the shards of a config; the same command again continues where it stopped",
    "validate": "measure a run's checkpoint on the validation splits",
    "test": "measure a run's checkpoint on the test splits",
}


def add_parser(subparsers: Any) -> None:
    """Add `platform fit`, `platform validate` and `platform test`."""
    for name, text in _HELP.items():
        parser = subparsers.add_parser(
            name,
            help=text,
            description=text,
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            usage=f"platform {name} --config FILE [--config FILE ...] [--KEY.SUBKEY VALUE ...]",
        )
        parser.add_argument("-c", "--config", action="append", metavar="FILE", help="a config; may be repeated")
        parser.add_argument(
            "--print_config", action="store_true", help="print the whole config with defaults, and stop"
        )
        parser.add_argument(
            "--check", action="store_true", help="check the config and its shards, and stop before training"
        )
        parser.set_defaults(run=_run, takes_overrides=True)


def _run(args: argparse.Namespace) -> None:
    from inflate3d.errors import InputError
    from inflate3d.training.steering import stop_signals

    if not args.config:
        raise InputError(
            f"platform {args.command}: no --config. Start with: platform fit --config quickstart.yaml. "
            "All packaged configs: platform configs list"
        )
    # Before anything slow: an unhandled signal ends a process silently.
    handlers = stop_signals.listen() if args.command == "fit" else {}
    try:
        _carry_out(args)
    finally:
        stop_signals.restore(handlers)


def _carry_out(args: argparse.Namespace) -> None:
    from inflate3d.cli.check import check_config
    from inflate3d.cli.config import load_config

    config = load_config(args.config, args.overrides)
    if not args.print_config and is_first_process():
        print(f"config: {', '.join(str(path) for path in config.files)}", flush=True)
    check_config(config)
    if args.check:
        print("config: all checks passed")
        return
    from inflate3d.cli.run import Run  # torch, from here on

    if args.print_config:
        print(Run(config, instantiate=False).dump(), end="")
        return
    getattr(Run(config), args.command)()
