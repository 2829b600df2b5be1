"""`platform datasets list|show|preview`: readable datasets and built shards, their licences, and a look at them."""

from __future__ import annotations

import argparse
import inspect
import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inflate3d.cli.dataset_arguments import dataset_from_arguments
from inflate3d.cli.shard_facts import commercial_use, list_shards, print_shards
from inflate3d.cli.table import print_table
from inflate3d.contracts import DatasetCard
from inflate3d.discover import PlugIn, find, plug_ins
from inflate3d.errors import InputError, unknown_name

if TYPE_CHECKING:
    from inflate3d.data.shards.glimpse import Glimpse

_OWN = ("output", "num_samples")
_NAME_OR_FOLDER = "a name from `platform datasets list`, or a folder of shards, or one that holds several"


def add_parser(subparsers: Any) -> None:
    """Add `platform datasets`."""
    parser = subparsers.add_parser("datasets", help="list, show and preview datasets, raw or built as shards")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    listing = commands.add_parser("list", help="every dataset, built-in and from plug-ins; or what is built in folders")
    listing.add_argument("--root", nargs="+", metavar="DIR", help="shards, or folders that hold some: list these")
    listing.set_defaults(run=_list)
    show = commands.add_parser("show", help="layout, arguments and licence of one dataset; or what shards hold")
    show.add_argument("name", metavar="NAME|DIR", help=_NAME_OR_FOLDER)
    show.set_defaults(run=_show)
    preview = commands.add_parser(
        "preview",
        help="draw a few raw cases, before any shard is built, or stored ones: a picture or a page",
        usage="platform datasets preview NAME [--root RAW] [the dataset's own arguments] [--output FILE]\n"
        "       platform datasets preview DIR [DIR ...] [--output FILE]",
        allow_abbrev=False,  # an argument of a dataset may start like one of these
    )
    preview.add_argument("names", nargs="+", metavar="NAME|DIR", help=_NAME_OR_FOLDER)
    preview.add_argument(
        "--output",
        default="preview.png",
        metavar="FILE",
        help="x.png: a picture; x.html: a page with class counts and intensities too (default preview.png)",
    )
    preview.add_argument("--num_samples", type=int, metavar="N", help="of each set; default 4, on a page 12")
    preview.set_defaults(run=_preview, takes_overrides=True)


def _list(args: argparse.Namespace) -> None:
    if args.root:
        list_shards(args.root)
        return
    rows = [(dataset.name, dataset.class_name, dataset.summary) for dataset in plug_ins("datasets").values()]
    print_table(("name", "class_path", "what it is"), rows)


def _show(args: argparse.Namespace) -> None:
    if folders := _folders(args.name):
        for i, folder in enumerate(folders):
            print("\n" if i else "", end="")
            print_shards(folder)
        return
    plug_in = find("datasets", args.name)
    dataset = plug_in.load()
    print(f"{plug_in.name}: {plug_in.summary}\n")
    _print_card(dataset.base_card)
    # What a layout says itself, then what it shares with its like.
    shared = (vars(base)["__init__"].__doc__ for base in dataset.__mro__[:-1] if "__init__" in vars(base))
    for doc in filter(None, (dataset.__doc__, *shared)):
        print(f"\n{inspect.cleandoc(doc)}")
    print("\narguments of `platform shards build` and of a config's build.init_args:")
    for parameter in inspect.signature(dataset.__init__).parameters.values():
        if parameter.name != "self":
            print(f"  --{_describe(parameter)}")
    print(f"\nbuild its shards:\n  {_build_command(plug_in, dataset)}")


def _preview(args: argparse.Namespace) -> None:
    if is_page := args.output.endswith(".html"):
        from inflate3d.reports.preview_page import write_preview as write
    else:
        from inflate3d.evaluation import draw_preview as write

    count = args.num_samples if args.num_samples is not None else 12 if is_page else 4
    print(f"{'page' if is_page else 'picture'}: {write(_glimpses(args, count), args.output)}")


def _glimpses(args: argparse.Namespace, count: int) -> list[Glimpse]:
    """Return a glimpse of one dataset's raw files, or of each set of shards."""
    from inflate3d.data.shards.glimpse import RawGlimpse, ShardGlimpse

    folders = [_folders(name) for name in args.names]
    if not all(folders):
        name = args.names[folders.index([])]
        if len(args.names) > 1:
            raise InputError(f"datasets preview: {name!r} is no folder of shards; give one name, or folders alone")
        return [RawGlimpse(dataset_from_arguments(name, args.overrides, command="datasets preview", own=_OWN), count)]
    if args.overrides:
        raise unknown_name("argument", args.overrides[0].lstrip("-"), _OWN, where="datasets preview")
    return [ShardGlimpse(folder, count) for own in folders for folder in own]


def _folders(name: str) -> list[str]:
    """Return the folders of shards that a name means; none for a dataset's name, which comes first: write ./NAME."""
    from inflate3d.data.shards.glimpse import shard_folders

    is_place = os.sep in name or name in (".", "..") or Path(name).expanduser().is_dir()
    return shard_folders(name) if is_place and name not in plug_ins("datasets") else []


def _print_card(card: DatasetCard) -> None:
    rows = {
        "title": card.title,
        "media": card.media,
        "modality": card.modality,
        "targets": "; ".join(f"{name}: {t.describe()}" for name, t in card.targets.items()) or "read from the files",
        "channels": ", ".join(card.input.channels),
        "url": card.url,
        "licence": card.licence,
        "commercial use": commercial_use(card),
        "publish weights": "yes" if card.weights_may_be_published else "no: only to a directory marked private",
        "cite": card.citation,
    }
    for name, value in rows.items():
        print(textwrap.fill(str(value), 110, initial_indent=f"{name:<17}", subsequent_indent=" " * 17))


def _describe(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return f"{parameter.name} (required): {parameter.annotation}"
    return f"{parameter.name} (default {parameter.default!r}): {parameter.annotation}"


def _build_command(plug_in: PlugIn, dataset: type[Any]) -> str:
    parameters = inspect.signature(dataset.__init__).parameters.values()
    required = [p.name for p in parameters if p.name not in ("self", "root") and p.default is inspect.Parameter.empty]
    options = "".join(f" --{name} {name.upper()}" for name in required)
    root = " --root RAW" if any(p.name == "root" for p in parameters) else ""
    return f"platform shards build {plug_in.name}{root}{options} --output SHARDS/{plug_in.name}"
