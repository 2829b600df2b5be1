"""`platform predict MODEL --input PATH --output PATH`: a run, or published weights, predict on raw files."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

_TEXT = "predict on raw files with a run's checkpoint, or with published weights and their heads"
_EPILOG = """\
MODEL     a run folder, or published weights (with heads: platform publish --heads): local-dir:PATH, hf-hub:ORG/NAME,
          https://HOST/DIR, s3://BUCKET/DIR, or a name from inflate3d.list_pretrained(). Several are averaged
--input   a volume (.nii, .nii.gz, .nrrd, .mha, .npy), a video, a folder of either, a folder of one DICOM series, or
          one with studies below it, as archives export them: each series is a case
--output  segmentation: a folder with one NIfTI per case, with shape and affine of the input (or a .nii.gz for one case)
          classification: a folder for predictions.csv, or a .csv
          --features: a folder for features.npz, or a .npz
--labels  label maps: dice.csv, each case at its own spacing. A CSV with the columns key (as in predictions.csv) and
          label (a class; "a; b" where several may hold; a number): scores.csv, with 95 % intervals
Files named CASE_0000, CASE_0001, ... (as in nnU-Net) are the channels of one case.
docs/prediction.md says what each option does.
"""
_LINE_EVERY_S = 15.0


def add_parser(subparsers: Any) -> None:
    """Add `platform predict`."""
    parser = subparsers.add_parser(
        "predict",
        help=_TEXT,
        description=_TEXT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="+", metavar="MODEL", help="a run folder or published weights; see below")
    parser.add_argument("--input", required=True, metavar="PATH", help="a file or a folder; see below")
    parser.add_argument("--output", required=True, metavar="PATH", help="see below")
    parser.add_argument("--labels", metavar="PATH", help="true label maps, named like the cases; or a CSV: key, label")
    parser.add_argument(
        "--dataset", metavar="NAME", help="the dataset whose head predicts (default: the only one that fits)"
    )
    parser.add_argument("--checkpoint", default="best", metavar="best|last|PATH", help="default: best by val/score")
    parser.add_argument("--features", action="store_true", help="pooled features instead of predictions")
    parser.add_argument(
        "--mirror",
        nargs="?",
        const="",
        metavar="AXES",
        help="average over mirror images along these of D, H, W (default: all); for nets trained on such",
    )
    parser.add_argument("--probabilities", action="store_true", help="each class's too: probabilities/ in the output")
    parser.add_argument("--dicom-seg", action="store_true", help="DICOM segmentations too, of DICOM series: KEY.dcm")
    parser.add_argument(
        "--largest-component",
        nargs="*",
        metavar="CLASS",
        help="keep only the largest of each (default: of every class)",
    )
    parser.add_argument("--cache-dir", metavar="DIR", help="where downloads are kept (default: INFLATE3D_CACHE)")
    parser.add_argument("--device", metavar="cpu|cuda", help="default: the GPU if there is one")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from inflate3d.evaluation.prediction.dicom_seg import require_highdicom
    from inflate3d.evaluation.prediction.inputs import media_in

    for model in args.model:
        _check_model(model)
    media_in(Path(args.input))
    if args.dicom_seg:
        require_highdicom()
    from inflate3d.evaluation.prediction.answers import MapOptions
    from inflate3d.evaluation.prediction.predict import Predictor, describe

    largest = None if args.largest_component is None else tuple(args.largest_component)
    predictor = Predictor(
        args.model[0],
        args.input,
        others=args.model[1:],
        dataset=args.dataset,
        checkpoint=args.checkpoint,
        device=args.device,
        features=args.features,
        cache_dir=args.cache_dir,
        labels=args.labels,
        mirror=args.mirror,
        maps=MapOptions(args.probabilities, largest, args.dicom_seg),
    )
    what = "features as" if args.features else "head of"
    for member in predictor.members:
        print(f"{member.answerer.title}, {what} {member.name} ({describe(member.head)})", flush=True)
    with _CaseProgress() as progress:
        place, scores = predictor.write(args.output, progress)
    print(f"predictions: {place}")
    if scores:
        print(scores)


def _check_model(model: str) -> None:
    """Refuse what is no run and no publication before torch is imported."""
    from inflate3d.models.publication.index import find_entry
    from inflate3d.models.publication.layout import CONFIG
    from inflate3d.models.publication.places import has_place
    from inflate3d.training.run.folder import read_run_config

    folder = Path(model)
    is_published = has_place(model) or find_entry(model) is not None or (folder / CONFIG).is_file()
    if not is_published or (folder / "config.yaml").is_file():
        read_run_config(model)


class _CaseProgress:
    """A bar in a terminal, a plain line now and then elsewhere."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> _CaseProgress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("cases"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.add_task("cases", total=None)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        elif done == total or now - self._last_line > _LINE_EVERY_S:
            self._last_line = now
            rate = done / max(now - self._started, 1e-3)
            print(f"cases: {done}/{total}, {rate:.1f} cases/s", file=sys.stderr, flush=True)
