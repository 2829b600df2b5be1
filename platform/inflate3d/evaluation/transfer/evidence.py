"""The evidence, from shards to reports, by one command: every study of a YAML document is a transfer.

python -m inflate3d.evaluation.transfer.evidence [--file FILE] [--only STUDY ...] [--output DIR]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from inflate3d.contracts import DatasetCard
from inflate3d.data.manifest import MANIFEST_FILE
from inflate3d.data.shard_writer import build_shards
from inflate3d.discover import find
from inflate3d.errors import InputError, unknown_name
from inflate3d.evaluation.transfer.arms import Arm
from inflate3d.evaluation.transfer.cells import Cell
from inflate3d.evaluation.transfer.protocol import Protocol
from inflate3d.evaluation.transfer.run import run_transfer
from inflate3d.evaluation.transfer.target import Target
from inflate3d.models import BackboneConfig

STUDIES = Path(__file__).with_name("evidence.yaml")


def run_study(
    document: Mapping[str, Any],
    name: str,
    output: str | Path,
    *,
    seeds: Sequence[int] | None = None,
    only_arms: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Build the shards that are missing, run one study of the document into output/name, and return its result.

    seeds, only_arms: less than the whole study, for a smaller budget; what is finished counts when more is asked for.
    """
    study = document["studies"][name]
    protocol = Protocol.from_dict({**study["protocol"], **({} if seeds is None else {"seeds": seeds})})
    folder = Path(document["root"]) / protocol.dataset
    if not (folder / MANIFEST_FILE).is_file():
        build = document["datasets"][protocol.dataset]
        build_shards(find("datasets", build["class_path"]).load()(**build["init_args"]), folder)
    target = Target(document["root"], protocol)
    names = [arm for arm in study["arms"] if only_arms is None or arm in only_arms]
    arms = [study_arm(document, arm, target.card) for arm in names]
    return run_transfer(arms, target, Path(output) / name, report=_print)


def study_arm(document: Mapping[str, Any], name: str, card: DatasetCard) -> Arm:
    """Return an arm of the document: the common backbone, its own changes, and a stem for the dataset's channels."""
    if name not in document["arms"]:
        raise unknown_name("arm", name, document["arms"], where="studies")
    values = {"pretrained": True, **document["backbone"], **document["arms"][name]}
    if values["pretrained"] and document.get("weights"):
        overlay = {"pretrained_cfg_overlay": {"file": document["weights"]}}
        values["timm_kwargs"] = {**values.get("timm_kwargs", {}), **overlay}
    stems = {card.modality: len(card.input.channels)}
    return Arm(name, BackboneConfig(document["model"], stems=stems, norm="shared", **values))


def _print(cell: Cell, record: Mapping[str, Any], done: int, of: int) -> None:
    value = next(iter(record["test"]["total"].values()))
    print(f"{done}/{of}  {cell}: {value}, {record['seconds']:.0f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the studies; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m inflate3d.evaluation.transfer.evidence", description=__doc__)
    parser.add_argument("--file", default=str(STUDIES), help="a document like the packaged evidence.yaml, the default")
    parser.add_argument("--only", nargs="+", metavar="STUDY", help="default: every study of the document")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="S", help="default: those of each study")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="default: those of each study")
    parser.add_argument("--root", metavar="DIR", help="folder of shards, instead of the document's")
    parser.add_argument("--output", default="runs/evidence", metavar="DIR", help="default: runs/evidence")
    args = parser.parse_args(arguments)
    try:
        document = yaml.safe_load(Path(args.file).read_text(encoding="utf-8"))
        document["root"] = args.root or document["root"]
        for name in args.only or document["studies"]:
            if name not in document["studies"]:
                raise unknown_name("study", name, document["studies"], where="--only")
            print(f"study {name}", flush=True)
            run_study(document, name, args.output, seeds=args.seeds, only_arms=args.arms)
    except InputError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 2
    print(f"reports: {args.output}/*/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
