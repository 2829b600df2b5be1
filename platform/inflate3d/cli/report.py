"""`platform report FOLDER`: what a run, a transfer or a set of shards shows, on one page to look at."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from inflate3d.errors import InputError
from inflate3d.remote.address import scrubbed

log = logging.getLogger(__name__)

_EPILOG = """\
FOLDER    a run (trainer.default_root_dir), under way, stopped or finished: how it stands and goes on, scores, curves,
          pictures, the worst cases, what was noticed in its data, cost and config. `fit` writes this page at its end
          the --output of `platform transfer`: its report, written anew
          shards: as `platform shards report`
The page is FOLDER/report.html. It holds its pictures and needs no network: it can be sent alone.
"""
_TRANSFER = "transfer.json"  # evaluation.transfer.study.TRANSFER, whose import takes seconds


def add_parser(subparsers: Any) -> None:
    """Add `platform report`."""
    text = "one page to look at: a run, a transfer or shards"
    parser = subparsers.add_parser(
        "report",
        help=text,
        description=text,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="FOLDER", help="see below")
    parser.set_defaults(run=_run)


def report_at_end(folder: Path) -> None:
    """Write the page of a run that has ended and print where; that it cannot be written is a warning, no error."""
    try:
        _run_page(folder)
    except Exception as fault:
        log.warning("no report.html: %s; once that is mended: platform report %s", scrubbed(fault), folder)


def _run(args: argparse.Namespace) -> None:
    from inflate3d.data.shards.manifest import MANIFEST_FILE
    from inflate3d.training.run.folder import CONFIG

    folder = Path(args.folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"no folder {args.folder!r}; give a run (trainer.default_root_dir), a transfer or shards")
    kinds = {CONFIG: _run_page, MANIFEST_FILE: _shards, _TRANSFER: _transfer}
    for name, write in kinds.items():
        if (folder / name).is_file():
            write(folder)
            return
    raise InputError(
        f"{folder} is no run, set of shards or transfer: it has none of {', '.join(kinds)}. "
        "A run's folder is its trainer.default_root_dir"
    )


def _run_page(folder: Path) -> None:
    from inflate3d.reports.run_report import write_run_report

    print(f"report: {write_run_report(folder)}")


def _shards(folder: Path) -> None:
    from inflate3d.cli.shards import print_report

    print_report(str(folder))


def _transfer(folder: Path) -> None:
    from inflate3d.evaluation.transfer.study import REPORT, read_result, write_page

    write_page(read_result(folder), folder)
    print(f"report: {folder / REPORT}")
