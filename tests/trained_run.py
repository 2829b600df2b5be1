"""A finished run of three tasks, its raw files and what its validation saw: the fixture `made`."""

from __future__ import annotations

import csv
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from inflate3d.cli.main import main
from inflate3d.data.raw.readers import read_volume
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.datasets.volume_csv import VolumeCSV
from inflate3d.training.run.saved import load_data, load_module

SPACING_XYZ = (2.5, 0.9, 1.3)
CODES = ["PIR", "LAS", "SRA", "ILP", "ASL", "RPI", "LPS", "PSR"]
CONFIG = """
seed_everything: 0
trainer:
  default_root_dir: run
  accelerator: cpu
  devices: 1
  max_steps: 20
  accumulate_grad_batches: 2
  val_check_interval: 40
model:
  backbone: {name: test_resnet, stems: {rgb: 3, ct: 1}}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-2}}
  tasks:
    cut: {class_path: MedicalSegmentation, init_args: {datasets: [stored, even]}}
    tone: {class_path: VolumeClassification, init_args: {datasets: [scans]}}
    motion: {class_path: VideoAction, init_args: {datasets: [clips]}}
data:
  root: shards
  datasets:
    stored: {weight: 3, batch_size: 2, sample: {patch_size: [16, 16, 16]}}
    even: {weight: 3, batch_size: 2, sample: {patch_size: [12, 12, 10]}}
    scans: {batch_size: 2, sample: {size: [12, 12, 12]}}
    clips: {batch_size: 2, sample: {num_frames: 4, crop_size: 32}}
"""


@dataclass
class Made:
    """A finished run whose shards are gone, the raw files, what validation saw of them, and label maps in out/."""

    run: Path
    raw: Path
    answers: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)


def affine_of(codes: str, shape: tuple[int, ...]) -> np.ndarray:
    """The affine of a file whose axes grow to `codes`, slightly oblique."""
    turn = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(tuple(codes)), shape)
    tilt = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.05, -0.08, 0.1), (11.0, -7.5, 3.25))
    return tilt @ np.array(turn) @ np.diag([*SPACING_XYZ, 1.0])


def write_volumes(root: Path) -> None:
    """Bright boxes in noise, each file with axes of its own; one is small along a patch. And masks.csv."""
    generator = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rows = ["image,mask,split"]
    for i, codes in enumerate(CODES):
        shape = (17 + i % 3, 24, 21)
        mask = np.zeros(shape, np.uint8)
        mask[:9, :, 6 + i % 5 :] = 1
        mask[9:, 8 + i % 4 :, :12] = 2
        image = (generator.normal(0, 40, shape) + np.array([-50, 400, 900])[mask]).astype(np.int16)
        for folder, array in (("images", image), ("masks", mask)):
            nib.save(nib.Nifti1Image(array, affine_of(codes, shape)), root / folder / f"case_{i}.nii.gz")
        rows.append(f"images/case_{i}.nii.gz,masks/case_{i}.nii.gz,{'val' if i >= 5 else 'train'}")
    (root / "masks.csv").write_text("\n".join(rows) + "\n")


def write_clips(folder: Path) -> Toy:
    """Toy clips as files, called as their cases."""
    toy = Toy(kind="video_classification", num_train=4, num_val=3, size=32, num_frames=8)
    folder.mkdir()
    for case in toy.cases():
        (folder / f"{case.key}.mp4").write_bytes(toy.read(case).video or b"")
    return toy


def train(root: Path) -> Made:
    """Train for twenty steps through the command, note what validation sees, and take the shards away."""
    torch.set_num_threads(1)
    write_volumes(root / "raw")
    given = {"csv": "masks.csv", "modality": "ct", "classes": "background,box,bar", "window": [-100, 1000]}
    build_shards(VolumeCSV(root / "raw", **given), root / "shards/stored", progress=False)
    build_shards(VolumeCSV(root / "raw", spacing_mm=[1.1, 1.6, 1.9], **given), root / "shards/even", progress=False)
    scans = VolumeCSV(**{**VolumeCSV.write_example(root / "scans"), "csv": "cases.csv"})
    build_shards(scans, root / "shards/scans", progress=False)
    build_shards(write_clips(root / "clips"), root / "shards/clips", progress=False)
    (root / "config.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PL_GLOBAL_SEED", "0")  # so that what the run sets is taken back
        assert main(["fit", "--config", "config.yaml"]) == 0
        made = Made(root / "run", root)
        module = load_module(made.run)
        with torch.no_grad():
            for batch in load_data(made.run).val_dataloader():
                answers = module.predict(batch).tensor
                made.answers.setdefault(batch.dataset, {}).update(zip(batch.keys, answers, strict=True))
        shutil.rmtree(root / "shards")
        for dataset in ("stored", "even"):
            source, output = root / "raw/images", root / "out" / dataset
            assert main(["predict", "run", "--input", str(source), "--output", str(output), "--dataset", dataset]) == 0
        return made


def rows_of(table: Path) -> dict[str, dict[str, str]]:
    with table.open(newline="") as file:
        return {row["key"]: row for row in csv.DictReader(file)}


def as_ras(path: Path) -> np.ndarray:
    return read_volume(path, is_mask=True).array[0]


def dice(guess: np.ndarray, truth: np.ndarray, label: int) -> float:
    return 2 * ((guess == label) & (truth == label)).sum() / ((guess == label).sum() + (truth == label).sum())
