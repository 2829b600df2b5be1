"""The evidence, from shards to reports, in one command: every study of a YAML document is a transfer.

python -m inflate3d.reports.evidence [--file FILE] [--only STUDY ...] [--minutes N] [--output DIR]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from inflate3d.contracts import DatasetCard
from inflate3d.data.shards.manifest import MANIFEST_FILE
from inflate3d.data.shards.writer import build_shards
from inflate3d.discover import find
from inflate3d.errors import InputError, unknown_name
from inflate3d.evaluation.transfer.arms import Arm, arms_for
from inflate3d.evaluation.transfer.protocol import Protocol
from inflate3d.evaluation.transfer.report import render_overview
from inflate3d.evaluation.transfer.study import REPORT, TRANSFER, printed, read_result, run_transfer
from inflate3d.evaluation.transfer.target import Target
from inflate3d.files import write_whole
from inflate3d.models import BackboneConfig
from inflate3d.models.publication.layout import CONFIG
from inflate3d.publishing import publish_run
from inflate3d.reports import lite_weights

STUDIES = Path(__file__).with_name("evidence.yaml")
GOES_ON = 75  # exit code, as of a fit that was stopped: what is finished is kept, and the same command goes on


class SittingOver(Exception):
    """The time is up, and a pretraining is unfinished."""


class Sitting:
    """The time that a call may take; None: as long as it takes."""

    def __init__(self, minutes: float | None = None) -> None:
        self._ends = None if minutes is None else time.monotonic() + 60 * minutes

    def seconds_left(self) -> float | None:
        """Return the seconds until it ends, at least 0; None where it does not."""
        return None if self._ends is None else max(self._ends - time.monotonic(), 0.0)

    def is_over(self) -> bool:
        """Whether the time is up."""
        return self.seconds_left() == 0


def run_study(
    document: Mapping[str, Any],
    name: str,
    output: str | Path,
    *,
    seeds: Sequence[int] | None = None,
    only_arms: Sequence[str] | None = None,
    sitting: Sitting | None = None,
) -> dict[str, Any]:
    """Build and pretrain what is missing, run one study of the document into output/name, and return its result.

    seeds, only_arms: a part of the study, for a smaller budget; finished cells count when more are requested later.
    sitting: when it ends, the current cell is finished, and the result is that of the finished ones; SittingOver where
    a pretraining is unfinished.
    """
    sitting = sitting or Sitting()
    study = document["studies"][name]
    protocol = Protocol.from_dict({**study["protocol"], **({} if seeds is None else {"seeds": seeds})})
    folder = Path(document["root"]) / protocol.dataset
    if not (folder / MANIFEST_FILE).is_file():
        build = document["datasets"][protocol.dataset]
        build_shards(find("datasets", build["class_path"]).load()(**build["init_args"]), folder)
    target = Target(document["root"], protocol)
    if "models" in study:
        arms = [arm for arm in model_arms(document, name, target.card) if only_arms is None or arm.name in only_arms]
    else:
        arms = []
        for arm in study["arms"] if only_arms is None else [arm for arm in study["arms"] if arm in only_arms]:
            pretraining = document["arms"].get(arm, {}).get("pretraining")
            runs = pretrain(document, pretraining, output, sitting=sitting) if pretraining else []
            arms.append(study_arm(document, arm, target.card, runs=runs))
    return run_transfer(arms, target, Path(output) / name, report=printed(target.metric), is_over=sitting.is_over)


def model_arms(document: Mapping[str, Any], name: str, card: DatasetCard) -> list[Arm]:
    """Return scratch and inflated for each of a study's models, as `platform transfer` has them.

    models: architecture to file of 2D weights, null for timm's download. InputError for a missing file.
    """
    study = document["studies"][name]
    files = {model: file for model, file in study["models"].items() if file is not None}
    for model, file in files.items():
        if not Path(file).is_file():
            raise InputError(
                f"study {name}: no file {file!r} of 2D weights for {model}; `make evidence` makes the files of "
                f"EfficientNet-Lite1 and Lite2 ({lite_weights.__name__}), null uses timm's download"
            )
    return arms_for(list(study["models"]), card, pretrained=files, **{**document["backbone"], **study["backbone"]})


def pretrain(document: Mapping[str, Any], name: str, output: str | Path, *, sitting: Sitting) -> list[str]:
    """Return the addresses of a pretraining's published weights by seed; `platform fit` trains what is unfinished.

    Its `publishing` holds arguments of publish_run: which, domain, with_heads. SittingOver when the time is up first;
    a training ends after a step, saved, and goes on the next time.
    """
    pretrainings = document.get("pretraining", {})
    if name not in pretrainings:
        raise unknown_name("pretraining", name, pretrainings, where="arms")
    addresses = []
    for seed in range(pretrainings[name]["seeds"]):
        run = Path(output) / "pretraining" / f"{name.replace(' ', '_')}-{seed}"
        addresses.append(address := f"local-dir:{run / 'published'}")
        if (run / "published" / CONFIG).is_file():
            continue
        options = {
            "trainer.default_root_dir": str(run),
            "seed_everything": seed,
            "data.root": document["root"],
            "pictures": False,
            **pretrainings[name].get("options", {}),
        }
        given = [part for key, value in options.items() for part in (f"--{key}", _on_one_line(value))]
        print(f"pretraining {name}, seed {seed}", flush=True)
        command = [sys.executable, "-m", "inflate3d.cli.main", "fit", "--config", pretrainings[name]["config"], *given]
        fit_within(command, sitting)
        publish_run(run, address, **pretrainings[name].get("publishing", {}))
    return addresses


def fit_within(command: Sequence[str], sitting: Sitting) -> None:
    """Run a fit, and when the time is up stop it as a cluster would: it saves itself. SittingOver if it is unfinished.

    CalledProcessError if it fails.
    """
    if sitting.is_over():
        raise SittingOver
    with subprocess.Popen(command) as fit:
        try:
            code = fit.wait(sitting.seconds_left())
        except subprocess.TimeoutExpired:
            fit.terminate()
            fit.wait()
            raise SittingOver from None
    if code:
        raise subprocess.CalledProcessError(code, list(command))


def _on_one_line(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=float("inf")).split("\n")[0]


def study_arm(document: Mapping[str, Any], name: str, card: DatasetCard, *, runs: Sequence[str] = ()) -> Arm:
    """Return an arm of the document: the common backbone, the arm's changes, and a stem for the dataset's channels.

    Published weights (`published: NAME`, or those of the pretraining's `runs`) keep their own inflation.
    """
    if name not in document["arms"]:
        raise unknown_name("arm", name, document["arms"], where="studies")
    stems = {card.modality: len(card.input.channels)}
    own = document["arms"][name]
    if published := own.get("published") or own.get("pretraining"):
        backbone = BackboneConfig(runs[0] if runs else published, pretrained=True, stems=stems, norm="shared")
        return Arm(name, backbone, tuple(runs), own.get("head", ""))
    values = {"pretrained": True, **document["backbone"], **own}
    if values["pretrained"] and document.get("weights"):
        overlay = {"pretrained_cfg_overlay": {"file": document["weights"]}}
        values["timm_kwargs"] = {**values.get("timm_kwargs", {}), **overlay}
    return Arm(name, BackboneConfig(document["model"], stems=stems, norm="shared", **values))


def write_overview(studies: Iterable[str], output: str | Path) -> None:
    """Write one page over the studies that have results in `output`."""
    files = {name: Path(output) / name / TRANSFER for name in studies}
    results = {name: read_result(f.parent) for name, f in files.items() if f.is_file()}
    write_whole(Path(output) / REPORT, render_overview(results).encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the studies; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m inflate3d.reports.evidence", description=__doc__)
    parser.add_argument("--file", default=str(STUDIES), help="a document like the packaged evidence.yaml, the default")
    parser.add_argument("--only", nargs="+", metavar="STUDY", help="default: every study of the document")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="S", help="default: those of each study")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="default: those of each study")
    parser.add_argument(
        "--minutes", type=float, metavar="N", help="end after the cell or training step of then; the same goes on"
    )
    parser.add_argument("--root", metavar="DIR", help="folder of shards, instead of the document's")
    parser.add_argument("--output", default="runs/evidence", metavar="DIR", help="default: runs/evidence")
    args = parser.parse_args(arguments)
    sitting = Sitting(args.minutes)
    try:
        document = yaml.safe_load(Path(args.file).read_text(encoding="utf-8"))
        document["root"] = args.root or document["root"]
        for name in args.only or document["studies"]:
            if name not in document["studies"]:
                raise unknown_name("study", name, document["studies"], where="--only")
            print(f"study {name}", flush=True)
            result = run_study(document, name, args.output, seeds=args.seeds, only_arms=args.arms, sitting=sitting)
            write_overview(document["studies"], args.output)
            if result["cells"]["finished"] < result["cells"]["of"]:
                raise SittingOver
    except InputError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 2
    except SittingOver:
        print(f"{args.minutes:g} minutes are over; what is finished is in {args.output}. The same command goes on")
        return GOES_ON
    except subprocess.CalledProcessError as fault:  # the error is printed above
        return fault.returncode
    print(f"report: {Path(args.output) / REPORT}, of each study: {args.output}/*/{REPORT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
