"""`platform shards build|merge|index|report|check|info`: raw files or tars to shards, and what they contain."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inflate3d.cli.dataset_arguments import dataset_from_arguments
from inflate3d.cli.shard_facts import print_shards, print_splits, size_text
from inflate3d.cli.table import print_table
from inflate3d.errors import InputError

if TYPE_CHECKING:
    pass

EXAMPLE = """\
card:
  name: clips
  media: video                      # or volume
  modality: rgb                     # chooses the stem: rgb, ct, mri, mask, ...
  targets:                          # what is known about each sample; none: unlabelled
    label: {type: class_label, names: [jump, run, wave]}      # or multi_label, mask (background first), value
  licence: CC-BY-4.0                # with title, url, citation, commercial_use, weights_may_be_published: optional
  input:                            # optional: channels, spacing_mm, orientation, intensity
    channels: [red, green, blue]
    intensity: {mode: window, window: [0, 255], mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}
splits:                             # patterns of the tars' file names; if left out, all are train
  train: train-*.tar
  val: [val-*.tar, extra-000.tar]
members:                            # the part of a member's name after the first dot
  video: mp4                        # for volumes: image: npy; a mask: seg.npy
  label: cls                        # text: class number or name, or a number; or a field of a JSON member, json:label
prefix_keys: false                  # true if several tars have the same key: TAR_KEY
"""


def add_parser(subparsers: Any) -> None:
    """Add `platform shards`."""
    parser = subparsers.add_parser("shards", help="build, check and describe shards")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_build(commands)
    _add_index(commands)
    report = commands.add_parser(
        "report", help="what was noticed, with pictures: DIR/report.html, as a build writes it"
    )
    report.add_argument("folder", metavar="DIR", help="a local folder with a manifest.json")
    report.set_defaults(run=_report)
    check = commands.add_parser("check", help="read everything and verify every hash, array, mask and video")
    check.add_argument("folder", metavar="DIR", help="a folder with a manifest.json")
    check.set_defaults(run=_check)
    info = commands.add_parser("info", help="splits, samples, shapes, spacing, classes and licence")
    info.add_argument("folder", metavar="DIR", help="a folder with a manifest.json")
    info.set_defaults(run=_info)


def _add_build(commands: Any) -> None:
    build = commands.add_parser(
        "build",
        help="raw files -> shards; the same command again continues where it stopped",
        usage="platform shards build NAME --output DIR [--root RAW] [the dataset's own arguments] [options]",
        epilog="For the dataset's own arguments, such as --root: platform datasets show NAME",
        allow_abbrev=False,  # an argument of a dataset may start like one of these
    )
    build.add_argument("name", metavar="NAME", help="a name from `platform datasets list`")
    build.add_argument("--output", metavar="DIR", required=True, help="new or empty folder for the shards")
    build.add_argument(
        "--num_workers", type=int, default=None, help="reading processes; default: one per core, up to 8"
    )
    build.add_argument("--max_rejects", type=int, default=0, help="broken cases that may be left out (default 0)")
    build.add_argument("--max_samples_per_shard", type=int, default=2048, help="default 2048")
    build.add_argument("--max_bytes_per_shard", type=int, default=2**29, help="default 512 MiB")
    build.add_argument(
        "--part", metavar="I/N", default=None, help="only part I of N, for a SLURM array; merge afterwards"
    )
    build.add_argument(
        "--video_gop",
        type=int,
        default=None,
        metavar="N",
        help="re-encode videos: h264 with a key frame every N frames",
    )
    build.add_argument(
        "--video_short_side",
        type=int,
        default=None,
        metavar="PIXELS",
        help="with --video_gop: scale larger videos down",
    )
    build.set_defaults(run=_build, takes_overrides=True)
    merge = commands.add_parser("merge", help="join the finished parts of a build into one folder of shards")
    merge.add_argument("folder", metavar="DIR", help="the --output of every part")
    merge.add_argument(
        "--max_rejects", type=int, default=0, help="broken cases that all parts together may leave out (default 0)"
    )
    merge.set_defaults(run=_merge)


def _add_index(commands: Any) -> None:
    index = commands.add_parser(
        "index",
        help="a manifest for existing WebDataset tars, which stay unchanged",
        epilog=f"a mapping:\n\n{EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    index.add_argument(
        "tars", metavar="TARS", nargs="+", help="a folder, files, patterns, or https://host/set/train-{000..099}.tar"
    )
    index.add_argument("--mapping", metavar="FILE", required=True, help="YAML: card, splits and members, as below")
    index.add_argument("--output", metavar="DIR", required=True, help="folder for manifest and indexes")
    index.add_argument(
        "--num_workers", type=int, default=None, help="tars read at once; default: one per core, up to 8"
    )
    index.add_argument("--max_rejects", type=int, default=0, help="broken samples that may be left out (default 0)")
    index.set_defaults(run=_index)


def _index(args: argparse.Namespace) -> None:
    from inflate3d.data.shards.tar_index import index_tars
    from inflate3d.data.shards.tar_mapping import TarMapping
    from inflate3d.document import read_document

    path = Path(args.mapping).expanduser()
    if not path.is_file():
        raise InputError(f"--mapping: no file {args.mapping!r}. An example: platform shards index --help")
    mapping = TarMapping.from_dict(read_document(path)[0], where=str(path))
    workers = min(8, len(os.sched_getaffinity(0))) if args.num_workers is None else args.num_workers
    manifest = index_tars(args.tars, mapping, args.output, num_workers=workers, max_rejects=args.max_rejects)
    for reject in manifest.rejects:
        print(f"rejected {reject['key']}: {reject['reason']}")
    print_splits(manifest)
    print(f"\nindexed; use it as data.root/NAME: {args.output}; more: platform shards info {args.output}")


def _build(args: argparse.Namespace) -> None:
    from inflate3d.data import build_shards
    from inflate3d.data.shards.parts import Part

    part = None if args.part is None else Part.parse(args.part)
    dataset = dataset_from_arguments(args.name, args.overrides, command="shards build", own=_OWN)
    workers = min(8, len(os.sched_getaffinity(0))) if args.num_workers is None else args.num_workers
    manifest = build_shards(
        dataset,
        args.output,
        num_workers=workers,
        max_rejects=args.max_rejects,
        max_samples_per_shard=args.max_samples_per_shard,
        max_bytes_per_shard=args.max_bytes_per_shard,
        part=part,
        encode=_encoding(args),
    )
    for reject in manifest.rejects:
        print(f"rejected {reject['key']}: {reject['reason']}")
    print_splits(manifest)
    if part is not None:
        _print_noticed(part.folder(Path(args.output)))
        print(f"\npart {args.part} of {manifest.name} is done; when all parts are: platform shards merge {args.output}")
        return
    print_report(args.output)
    print(f"shards of {manifest.name} are in {args.output}; more: platform shards info {args.output}")


def _encoding(args: argparse.Namespace) -> dict[str, Any] | None:
    if args.video_gop is not None:
        return {"gop": args.video_gop, "short_side": args.video_short_side}
    if args.video_short_side is not None:
        raise InputError("--video_short_side only works when videos are re-encoded: add --video_gop 12")
    return None


def _merge(args: argparse.Namespace) -> None:
    from inflate3d.data.shards.parts import merge_parts

    manifest = merge_parts(args.folder, max_rejects=args.max_rejects)
    print_splits(manifest)
    print_report(args.folder)
    print(f"shards of {manifest.name} are in {args.folder}; more: platform shards info {args.folder}")


def _report(args: argparse.Namespace) -> None:
    print_report(args.folder)


def print_report(folder: str) -> None:
    """Write the report of a finished set, and say shortly what it shows."""
    from inflate3d.reports.build_report import write_report

    write_report(folder)
    _print_noticed(folder)
    print(f"\nlook at it before training: {os.path.join(folder, 'report.html')}")


def _print_noticed(folder: str | Path) -> None:
    """Print what was noticed, the worst first: each kind, how often, and the first of it."""
    from inflate3d.data.shards.findings import count_kinds, read_noticed

    findings = read_noticed(folder) or []
    first = {finding.kind: finding for finding in reversed(findings)}
    rows = [
        (kind, count, f"{first[kind].key} {first[kind].text}".strip()) for kind, count in count_kinds(findings).items()
    ]
    print()
    print_table(("noticed", "samples", "such as"), rows or [("nothing", 0, "")])


def _check(args: argparse.Namespace) -> int:
    from inflate3d.data import Manifest, check_shards

    faults = check_shards(args.folder)
    if not faults:
        manifest = Manifest.load(args.folder)
        size = size_text(sum(e.bytes for e in manifest.shards))
        print(f"{args.folder}: {manifest.num_samples()} samples in {len(manifest.shards)} shards ({size}) are intact")
        return 0
    for fault in faults:
        print(fault)
    raise InputError(f"{args.folder}: {len(faults)} faults (listed above). The build command repairs damaged shards")


def _info(args: argparse.Namespace) -> None:
    print_shards(args.folder)


_OWN = (
    *("output", "num_workers", "max_rejects", "max_samples_per_shard", "max_bytes_per_shard", "part"),
    *("video_gop", "video_short_side"),
)
