"""Raw files that are broken: each a reject with its reason, and exit code 2 past max_rejects, through the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from inflate3d.cli.main import main
from inflate3d.data.raw.readers import write_nifti
from inflate3d.data.shards.manifest import Manifest
from inflate3d.datasets.msd import MSD
from inflate3d.datasets.video_folder import VideoFolder

Fault = Callable[[Path], None]
Capture = pytest.CaptureFixture[str]
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
BROKEN = "toy_001"


def _image_of_other_shape(task: Path) -> None:
    write_nifti(task / "imagesTr" / f"{BROKEN}.nii.gz", np.zeros((12, 14, 15), np.int16), AFFINE)


def _label_outside_the_classes(task: Path) -> None:
    write_nifti(task / "labelsTr" / f"{BROKEN}.nii.gz", np.full((12, 14, 16), 7, np.uint8), AFFINE)


def _label_between_two_integers(task: Path) -> None:
    write_nifti(task / "labelsTr" / f"{BROKEN}.nii.gz", np.full((12, 14, 16), 0.5, np.float32), AFFINE)


def _cut_short(task: Path) -> None:
    file = task / "imagesTr" / f"{BROKEN}.nii.gz"
    file.write_bytes(file.read_bytes()[:-500])


def _not_a_nifti(task: Path) -> None:
    (task / "imagesTr" / f"{BROKEN}.nii.gz").write_bytes(b"<html>404</html>")


def _empty_file(task: Path) -> None:
    (task / "imagesTr" / f"{BROKEN}.nii.gz").write_bytes(b"")


def _no_file(task: Path) -> None:
    (task / "labelsTr" / f"{BROKEN}.nii.gz").unlink()


def _not_finite(task: Path) -> None:
    write_nifti(task / "imagesTr" / f"{BROKEN}.nii.gz", np.full((12, 14, 16), np.nan, np.float32), AFFINE)


def _mask_elsewhere(task: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] = 300
    write_nifti(task / "labelsTr" / f"{BROKEN}.nii.gz", np.zeros((12, 14, 16), np.uint8), moved)


FAULTS = {
    _image_of_other_shape: ["(12, 14, 15)", "mask toy_001.nii.gz", "(12, 14, 16)"],
    _label_outside_the_classes: ["[7]", "[0, 1]"],
    _label_between_two_integers: [f"{BROKEN}.nii.gz"],
    _cut_short: [f"{BROKEN}.nii.gz", "corrupt or truncated"],
    _not_a_nifti: [f"{BROKEN}.nii.gz"],
    _empty_file: [f"{BROKEN}.nii.gz"],
    _no_file: [f"{BROKEN}.nii.gz", "missing"],
    _not_finite: [f"{BROKEN}.nii.gz"],
    _mask_elsewhere: ["mm away"],
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__.strip("_"))
def test_a_broken_volume_is_rejected_with_its_reason(fault: Fault, tmp_path: Path, capsys: Capture) -> None:
    arguments = MSD.write_example(tmp_path / "raw")
    task = Path(arguments["root"]) / arguments["task"]
    fault(task)
    check(capsys, tmp_path, ["msd", "--root", str(task), "--val_count", "2"], BROKEN, FAULTS[fault], total=6)


def _cut_video(clip: Path) -> None:
    clip.write_bytes(clip.read_bytes()[:-300])


def _text_video(clip: Path) -> None:
    clip.write_text("https://example.org/clip.mp4")


def _empty_video(clip: Path) -> None:
    clip.write_bytes(b"")


@pytest.mark.parametrize("fault", [_cut_video, _text_video, _empty_video], ids=lambda f: f.__name__.strip("_"))
def test_an_unreadable_video_is_rejected_with_its_reason(fault: Fault, tmp_path: Path, capsys: Capture) -> None:
    root = VideoFolder.write_example(tmp_path / "raw")["root"]
    fault(Path(root) / "darken" / "darken_0_1.mp4")
    command = ["video_folder", "--root", root]
    check(capsys, tmp_path, command, "darken_0_1", ["darken_0_1.mp4", "unreadable video"], total=8)


def check(capsys: Capture, folder: Path, build: list[str], key: str, words: list[str], *, total: int) -> None:
    """Exit code 2 and a short message with key and reason; with one reject allowed, shards that list it."""
    output = folder / "shards"
    command = ["shards", "build", *build, "--output", str(output), "--num_workers", "0"]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert len([line for line in message.splitlines() if line.strip()]) <= 8, message
    assert "Traceback" not in message
    assert all(word in message for word in (key, *words)), message
    assert not (output / "manifest.json").exists()
    assert main([*command, "--max_rejects", "1"]) == 0
    manifest = Manifest.load(output)
    assert [r["key"] for r in manifest.rejects] == [key]
    assert all(word in json.dumps(list(manifest.rejects)) for word in words)
    assert str(folder) not in json.dumps(list(manifest.rejects))  # the same shards from wherever the raw files lay
    assert manifest.num_samples() == total - 1
