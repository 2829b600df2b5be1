"""The norm options on the real mixture: the last scores of each dataset, per norm, mean and spread over seeds.

    OMP_NUM_THREADS=1 python benchmarks/norms.py --output runs/norms [--seeds 3] [--steps 300] [--norms per_domain ...]

configs/real_small_video.yaml (hippocampus, ModelNet10, adrenal, ARID; EfficientNet-Lite0 from ImageNet) on smaller
inputs and batches, so that a run takes minutes of one core. A run that is finished is not run again, one that was cut
off goes on. Every norm sees the same samples, seeds and steps. The last validation counts: nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
from pathlib import Path

from inflate3d.nn.domain import NORMS

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "real_small_video.yaml"
SCORES = {
    "hippocampus": "val/hippocampus/hippocampus/dice",
    "ModelNet10": "val/shapes/modelnet10/accuracy",
    "adrenal": "val/adrenal/adrenal/auroc",
    "ARID": "val/action/arid/accuracy",
}
SMALLER = {
    "trainer.log_every_n_steps": "50",
    "trainer.enable_progress_bar": "false",
    "data.num_workers": "0",
    "data.datasets.hippocampus.batch_size": "2",
    "data.datasets.hippocampus.max_eval_samples": "20",
    "data.datasets.modelnet10.batch_size": "16",
    "data.datasets.modelnet10.sample.resize": "[20, 20, 20]",
    "data.datasets.adrenal.batch_size": "12",
    "data.datasets.adrenal.sample.resize": "[20, 20, 20]",
    "data.datasets.arid.batch_size": "6",
    "data.datasets.arid.sample.num_frames": "4",
    "data.datasets.arid.sample.frame_interval": "8",
    "data.datasets.arid.sample.short_side": "72",
    "data.datasets.arid.sample.crop_size": "64",
}


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for runs and shards")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=list(NORMS))
    options = parser.parse_args()
    runs = {(norm, seed): options.output / f"{norm}-{seed}" for seed in range(options.seeds) for norm in options.norms}
    for (norm, seed), run in runs.items():
        if last_scores(run, options.steps) is None:
            fit(run, norm, seed, options)
        print(norm, seed, last_scores(run, options.steps), flush=True)
    print(f"\n| norm | {' | '.join(SCORES)} |\n|---|{'---|' * len(SCORES)}")
    for norm in options.norms:
        found = [scores for seed in range(options.seeds) if (scores := last_scores(runs[norm, seed], options.steps))]
        columns = zip(*(scores.values() for scores in found), strict=True)
        print(f"| {norm} | {' | '.join(_spread(column) for column in columns)} |")


def fit(run: Path, norm: str, seed: int, options: argparse.Namespace) -> None:
    """Train one run; the same command goes on with one that was cut off."""
    settings = {
        **SMALLER,
        "trainer.default_root_dir": str(run),
        "trainer.max_steps": str(options.steps),
        "trainer.val_check_interval": str(options.steps * len(SCORES)),
        "model.backbone.norm": norm,
        "seed_everything": str(seed),
        "data.root": str(options.output / "shards"),
    }
    arguments = [part for key, value in settings.items() for part in (f"--{key}", value)]
    subprocess.run([sys.executable, "-m", "inflate3d.cli.main", "fit", "--config", str(CONFIG), *arguments], check=True)


def last_scores(run: Path, steps: int) -> dict[str, float] | None:
    """Return the scores of the validation after the last step; None if the run did not get there."""
    if not (file := run / "metrics.csv").is_file():
        return None
    with file.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if int(row["step"]) == steps and row.get(SCORES["ARID"])]
    return {name: float(rows[-1][key]) for name, key in SCORES.items()} if rows else None


def _spread(values: tuple[float, ...]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.3f} ± {spread:.3f}"


if __name__ == "__main__":
    main()
