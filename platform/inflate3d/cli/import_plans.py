"""`platform import-plans nnUNetPlans.json --output FILE`: what nnU-Net planned, as a config for `platform fit`."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from inflate3d.cli.nnunet_plans import CT, RGB, ZSCORE, Planned, read_plans
from inflate3d.data.raw.files import read_json
from inflate3d.errors import InputError

_TEXT = "write a config with the spacing, patch, batch and normalisation of nnU-Net's plans"
_EPILOG = """\
example:
  platform import-plans nnUNet_preprocessed/Dataset004_Hippocampus/nnUNetPlans.json \\
      --dataset-json nnUNet_raw/Dataset004_Hippocampus/dataset.json --output mine.yaml
  platform fit --config mine.yaml

Each value of the config says beside it where it comes from; its head lists what has no counterpart. The raw folder is
that of --dataset-json where it holds imagesTr, else $nnUNet_raw/DATASET. A splits_final.json beside the plans is taken
for the folds; otherwise they are nnU-Net's own five.
"""
_RGB_WINDOW = (0.0, 255.0)
_CONFIG = """\
# {planned.dataset} as nnU-Net planned it: {planned.configuration} of {plans}.
#
# command:   platform fit --config {output}
# folds:     the same with --data.datasets.mine.fold.number 1 --trainer.default_root_dir runs/{name}_1, and so on
# without counterpart here:
{head}
seed_everything: 0
ckpt_path: last
trainer:
  default_root_dir: runs/{name}
  max_steps: 250000  # nnU-Net's trainer: 1000 epochs of 250 batches; `platform doctor` says what that costs here
  val_check_interval: 5000  # ours; nnU-Net looks at a few patches after each 250
  gradient_clip_val: 12.0  # nnU-Net's trainer
model:
  backbone: {{name: tf_efficientnet_lite0_3d.v2, pretrained: true{stems}}}  # ours, as in finetune_segmentation.yaml
  optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 1.0e-3, weight_decay: 0.05}}}}  # ours; nnU-Net: SGD
  warmup_steps: 50  # ours
  tasks:
    organs: {{class_path: MedicalSegmentation, init_args: {{datasets: [mine]}}}}  # cross-entropy + Dice, as nnU-Net's
data:
  root: runs/shards/{name}
  num_workers: 2
  datasets:
    mine:
      batch_size: {planned.batch_size}  # plans: batch_size
      sample:
        patch_size: {patch_size}  # plans: patch_size, the transposition undone
        foreground: 0.33  # nnU-Net's trainer: oversample_foreground_percent
      augment: augment/{augment}.yaml  # ours
      fold: {fold}
      build:
        class_path: NnunetRaw
        init_args:
          root: {root}  # {root_from}
          spacing_mm: {spacing_mm}  # plans: spacing, the transposition undone
          modality: {modality}  # {why}{window}
"""


def add_parser(subparsers: Any) -> None:
    """Add `platform import-plans`."""
    parser = subparsers.add_parser(
        "import-plans",
        help=_TEXT,
        description=_TEXT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("plans", metavar="PLANS", help="nnUNetPlans.json of nnU-Net v2")
    parser.add_argument("--output", required=True, metavar="FILE", help="the config; it must not be there yet")
    parser.add_argument("--configuration", default="3d_fullres", metavar="NAME", help="default 3d_fullres")
    parser.add_argument("--dataset-json", metavar="FILE", help="dataset.json, to check the channels and find the cases")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    plans, output = Path(args.plans), Path(args.output)
    if not plans.is_file():
        raise InputError(f"no file {str(plans)!r}; expected nnUNetPlans.json, in nnUNet_preprocessed/DATASET")
    if output.exists():
        raise InputError(f"--output: {output} is there already; give another name, or remove it")
    if not output.parent.is_dir():
        raise InputError(f"--output: no folder {str(output.parent)!r}; make it first")
    planned = read_plans(plans, args.configuration)
    table = None if args.dataset_json is None else Path(args.dataset_json)
    if table is not None:
        _check_channels(table, planned)
    splits = plans.with_name("splits_final.json")
    lost = _without_counterpart(planned)
    raw = _raw_folder(planned, table)
    text = _text(planned, str(plans), output, raw=raw, splits=splits if splits.is_file() else None, lost=lost)
    output.write_text(text, encoding="utf-8")
    print(f"written: {output}, from {planned.configuration} of {plans}")
    print("without counterpart:", *lost, sep="\n  ")
    print(f"next: platform fit --config {output}")


def _check_channels(table: Path, planned: Planned) -> None:
    if not table.is_file():
        raise InputError(f"--dataset-json: no file {str(table)!r}")
    stated = read_json(table, where="--dataset-json")
    channels = stated.get("channel_names") or stated.get("modality") or {}
    if len(channels) != len(planned.schemes):
        raise InputError(
            f"--dataset-json: {table} names {len(channels)} channels, the plans normalise {len(planned.schemes)}; are "
            "both of one dataset?"
        )


def _raw_folder(planned: Planned, table: Path | None) -> tuple[str, str]:
    """Return the folder of the raw cases, and where that is known from."""
    if table is not None and (table.parent / "imagesTr").is_dir():
        return str(table.parent.absolute()), "the folder of --dataset-json"
    home = Path(os.environ.get("nnUNet_raw", "RAW"))  # noqa: SIM112 - as nnU-Net calls it
    known = "$nnUNet_raw" if "nnUNet_raw" in os.environ else "not known: say where imagesTr and labelsTr lie"
    return str(home / planned.dataset), known


def _intensity(planned: Planned) -> tuple[str, tuple[float, float] | None, str]:
    """Return the modality, the window (None: z-score of each volume), and where both come from."""
    if set(planned.schemes) == {CT}:
        return "ct", planned.window, f"{CT}: 0.5 and 99.5 percentiles of the foreground, in HU"
    if set(planned.schemes) == {RGB}:
        return "rgb", _RGB_WINDOW, RGB
    return "mri", None, f"{', '.join(dict.fromkeys(planned.schemes))}: each volume's z-score"


def _without_counterpart(planned: Planned) -> list[str]:
    """Return what the plans say and no value of the config holds."""
    lost = [f"network: {planned.network}; here a published 3D backbone with a U-Net decoder"]
    own = {*planned.schemes}
    if own == {CT}:
        lost.append("CT after clipping: nnU-Net divides by the foreground's deviation, here the window becomes -1..1")
    elif odd := sorted(own - {ZSCORE}) if own != {RGB} else []:
        lost.append(f"normalisation: {', '.join(odd)} beside or in place of a z-score; here all channels have one way")
    if planned.uses_mask:
        lost.append("use_mask_for_norm: the z-score is that of the whole volume, zeros outside the brain among it")
    if not planned.batch_dice:
        lost.append("batch_dice false: Dice of each sample; here it is that of the batch")
    lost.append("resampling: nnU-Net's is cubic, here linear; masks nearest in both")
    lost.append("axes: nnU-Net's D, H, W are the file's, here they are foot to head, back to front, left to right")
    return lost


def _text(
    planned: Planned, plans: str, output: Path, *, raw: tuple[str, str], splits: Path | None, lost: list[str]
) -> str:
    modality, window, scheme = _intensity(planned)
    count = len(planned.schemes)
    fold = "{number: 0, of: 5}  # nnU-Net's own five"
    if splits is not None:
        fold = f"{{number: 0, file: {json.dumps(str(splits.absolute()))}}}  # the folds beside the plans"
    return _CONFIG.format(
        planned=planned,
        plans=plans,
        output=output,
        name=planned.dataset.partition("_")[2].lower() or planned.dataset.lower(),
        head="\n".join(f"#   {line}" for line in lost),
        stems=f", stems: {{{modality}: {count}}}" if count > 1 else "",
        patch_size=list(planned.patch_size),
        spacing_mm=list(planned.spacing_mm),
        augment="ct" if modality == "ct" else "mri",
        fold=fold,
        root=json.dumps(raw[0]),
        root_from=raw[1],
        modality=modality,
        why=scheme if window is None else "by its normalisation; say pet, ... where it is another",
        window="" if window is None else f"\n          window: [{window[0]:g}, {window[1]:g}]  # {scheme}",
    )
