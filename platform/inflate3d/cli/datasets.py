"""`platform datasets list|show|preview`: readable datasets, their licences, and previews."""

from __future__ import annotations

import argparse
import inspect
import textwrap
from typing import Any

from inflate3d.cli.dataset_arguments import dataset_from_arguments
from inflate3d.cli.table import print_table
from inflate3d.contracts import DatasetCard
from inflate3d.discover import PlugIn, find, plug_ins


def add_parser(subparsers: Any) -> None:
    """Add `platform datasets`."""
    parser = subparsers.add_parser("datasets", help="list, show and preview the datasets that shards are built from")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    commands.add_parser("list", help="every dataset, built-in and from plug-ins").set_defaults(run=_list)
    show = commands.add_parser("show", help="layout, arguments and licence of one dataset")
    show.add_argument("name", metavar="NAME", help="a name from `platform datasets list`")
    show.set_defaults(run=_show)
    preview = commands.add_parser(
        "preview",
        help="draw a few raw cases, with masks, before any shard is built",
        usage="platform datasets preview NAME [--root RAW] [the dataset's own arguments] [--output PNG]",
        allow_abbrev=False,  # an argument of a dataset may start like one of these
    )
    preview.add_argument("name", metavar="NAME", help="a name from `platform datasets list`")
    preview.add_argument("--output", default="preview.png", metavar="PNG", help="default preview.png")
    preview.add_argument("--num_samples", type=int, default=4, metavar="N", help="default 4")
    preview.set_defaults(run=_preview, takes_overrides=True)


def _list(args: argparse.Namespace) -> None:
    rows = [(dataset.name, dataset.class_name, dataset.summary) for dataset in plug_ins("datasets").values()]
    print_table(("name", "class_path", "what it is"), rows)


def _show(args: argparse.Namespace) -> None:
    plug_in = find("datasets", args.name)
    dataset = plug_in.load()
    print(f"{plug_in.name}: {plug_in.summary}\n")
    _print_card(dataset.base_card)
    # What a layout says itself, then what it shares with its like.
    shared = (inspect.getdoc(vars(base)["__init__"]) for base in dataset.__mro__[:-1] if "__init__" in vars(base))
    for doc in filter(None, (inspect.getdoc(dataset), *shared)):
        print(f"\n{doc}")
    print("\narguments of `platform shards build` and of a config's build.init_args:")
    for parameter in inspect.signature(dataset.__init__).parameters.values():
        if parameter.name != "self":
            print(f"  --{_describe(parameter)}")
    print(f"\nbuild its shards:\n  {_build_command(plug_in, dataset)}")


def _preview(args: argparse.Namespace) -> None:
    own = ("output", "num_samples")
    dataset = dataset_from_arguments(args.name, args.overrides, command="datasets preview", own=own)
    from inflate3d.evaluation import preview_dataset

    print(f"picture: {preview_dataset(dataset, args.output, num_samples=args.num_samples)}")


def _print_card(card: DatasetCard) -> None:
    commercial = {True: "yes", False: "no", None: "not stated"}[card.commercial_use]
    rows = {
        "title": card.title,
        "media": card.media,
        "modality": card.modality,
        "targets": "; ".join(f"{name}: {t.describe()}" for name, t in card.targets.items()) or "read from the files",
        "channels": ", ".join(card.input.channels),
        "url": card.url,
        "licence": card.licence,
        "commercial use": commercial,
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
