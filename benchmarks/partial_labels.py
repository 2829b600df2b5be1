"""Partial labels on real MRI: what half the cases are worth if one of their two labels was not annotated.

    OMP_NUM_THREADS=1 python benchmarks/partial_labels.py --raw ../shared/data/Task04_Hippocampus --output runs/partial

The hippocampus cases are cut into two datasets: one with both labels, one where the posterior part is hidden. All arms
take as many steps. `half` trains on a batch of the first dataset, `partial` adds a batch of the second through a shared
decoder that knows what was not annotated, `background` adds it with the hidden part counted as background, and
`half_twice` adds a second batch of the first. The last validation counts, on held-out cases of the first dataset:
nothing is chosen by it. A run that is finished is not run again, one that was cut off goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
from pathlib import Path
from typing import Any

import yaml
from inflate3d.cli.main import main as platform

BOTH, HIDDEN = "labelled", "hidden"
NAMES = ["background", "Anterior", "Posterior"]
ARMS: dict[str, dict[str, Any]] = {
    "half": {BOTH: {}},
    "half_twice": {BOTH: {}},
    "partial": {BOTH: {}, HIDDEN: {}},
    "background": {BOTH: {}, HIDDEN: {"targets": {"mask": {"annotated": NAMES}}}},
}
PARTS = ("Anterior", "Posterior")
LABELS = {BOTH: {"Anterior": 1, "Posterior": 2}, HIDDEN: {"Anterior": 1, "Posterior": []}}
VAL_CASES = 40


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--raw", type=Path, required=True, help="Task04_Hippocampus of the decathlon")
    parser.add_argument("--weights", type=Path, help="tf_efficientnet_lite0 as .safetensors; default: timm's own")
    parser.add_argument("--output", type=Path, required=True, help="folder for runs and shards")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    options = parser.parse_args()
    cut_in_two(options.raw.resolve(), options.output / "raw")
    found: dict[str, list[tuple[float, ...]]] = {arm: [] for arm in options.arms}
    for seed in range(options.seeds):
        for arm in options.arms:
            run = options.output / f"{arm}-{seed}"
            if last_scores(run, options.steps) is None:
                fit(run, arm, seed, options)
            scores = last_scores(run, options.steps)
            assert scores is not None, f"{run} has no validation at step {options.steps}"
            found[arm].append(scores)
            print(seed, arm, scores, flush=True)
    print(f"\n| arm | {' | '.join(PARTS)} |\n|---|{'---|' * len(PARTS)}")
    for arm, rows in found.items():
        print(f"| {arm} | {' | '.join(_spread(column) for column in zip(*rows, strict=True))} |")


def cut_in_two(raw: Path, folder: Path) -> None:
    """Make two folders of the decathlon's layout over the same files; the held-out cases are of the first."""
    content = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    cases = sorted(content["training"], key=lambda entry: str(entry["image"]))
    random.Random(0).shuffle(cases)
    first = (len(cases) - VAL_CASES) // 2 + VAL_CASES
    for name, training in ((BOTH, cases[:first]), (HIDDEN, cases[first:])):
        own = folder / name
        own.mkdir(parents=True, exist_ok=True)
        for part in ("imagesTr", "labelsTr"):
            if not (own / part).exists():
                (own / part).symlink_to(raw / part)
        (own / "dataset.json").write_text(json.dumps({**content, "training": training}), encoding="utf-8")


def config(run: Path, arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the run's config: a step is one micro-batch of each dataset, or two of the only one."""
    batches = 1 if arm == "half" else 2
    weights = {} if options.weights is None else {"pretrained_cfg_overlay": {"file": str(options.weights.resolve())}}
    task = {"datasets": list(ARMS[arm]), "shared": True, "decoder_channels": [8, 16, 32, 64]}  # a quarter of the cost
    raw = options.output.resolve() / "raw"
    return {
        "seed_everything": seed,
        "ckpt_path": "last",
        "trainer": {
            "default_root_dir": str(run),
            "accelerator": "cpu",
            "max_steps": options.steps,
            "accumulate_grad_batches": batches,
            "val_check_interval": batches * options.steps,
            "gradient_clip_val": 1.0,
            "enable_progress_bar": False,
        },
        "model": {
            "backbone": {
                "name": "tf_efficientnet_lite0",
                "pretrained": True,
                "plan": "isotropic",
                "stems": {"mri": 1},
                "norm": "shared",  # both datasets are one kind of scan, and only one of them is validated
                "timm_kwargs": {"output_stride": 16, **weights},
            },
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3.0e-3, "weight_decay": 0.05}},
            "warmup_steps": 10,
            "window_overlap": 0.25,
            "tasks": {"parts": {"class_path": "MedicalSegmentation", "init_args": task}},
        },
        "data": {
            "root": str(options.output.resolve() / "shards"),
            "num_workers": 0,
            "datasets": {name: {**_dataset(name, raw / name), **changes} for name, changes in ARMS[arm].items()},
        },
    }


def _dataset(name: str, root: Path) -> dict[str, Any]:
    build = {"root": str(root), "labels": LABELS[name], "val_count": VAL_CASES if name == BOTH else 0}
    return {
        "batch_size": 2,
        "max_eval_samples": 20,
        "sample": {"patch_size": [24, 32, 24], "foreground": 0.5},
        "augment": "augment/mri.yaml",
        "build": {"class_path": "MSD", "init_args": build},
    }


def fit(run: Path, arm: str, seed: int, options: argparse.Namespace) -> None:
    """Train one run; the same command goes on with one that was cut off."""
    file = options.output / f"{arm}-{seed}.yaml"
    file.write_text(yaml.safe_dump(config(run, arm, seed, options), sort_keys=False), encoding="utf-8")
    if platform(["fit", "--config", str(file)]):
        raise SystemExit(f"{file} did not end well")


def last_scores(run: Path, steps: int) -> tuple[float, ...] | None:
    """Return the Dice of each part after the last step; None if the run did not get there."""
    if not (file := run / "metrics.csv").is_file():
        return None
    keys = [f"val/parts/{BOTH}/dice_{part}" for part in PARTS]
    with file.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if int(row["step"]) == steps and row.get(keys[0])]
    return tuple(float(rows[-1][key]) for key in keys) if rows else None


def _spread(values: tuple[float, ...]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.3f} ± {spread:.3f}"


if __name__ == "__main__":
    main()
