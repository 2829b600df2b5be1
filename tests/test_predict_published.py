"""Published weights predict on raw files as the run that they come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from inflate3d.cli.main import main
from inflate3d.evaluation.prediction.answerers import answerer_of
from inflate3d.publishing.from_run import publish_run
from inflate3d.training import find_checkpoint
from inflate3d.training.run.saved import load_data
from trained_run import SPACING_XYZ, Made, as_ras, dice, rows_of

pytestmark = pytest.mark.slow  # its runs alone take half a minute to make


@pytest.fixture(scope="module")
def weights(made: Made) -> Path:
    outcome = publish_run(made.run, str(made.raw / "weights"), with_heads=True)
    assert outcome.folder is not None
    return outcome.folder


def test_what_training_volumes_were_like_travels_with_a_run_and_its_weights(made: Made, weights: Path) -> None:
    of_run, of_weights = ({n: h.seen for n, h in answerer_of(str(m)).heads.items()} for m in (made.run, weights))
    assert of_run == of_weights
    assert of_run["clips"] is None
    stored, even = of_run["stored"], of_run["even"]
    assert stored is not None
    assert even is not None
    assert (stored.volumes, even.volumes) == (5, 5)
    low, high = np.multiply([(17, 24, 21), (19, 24, 21)], SPACING_XYZ)
    assert (np.min(stored.field_of_view_mm), np.max(stored.field_of_view_mm)) == pytest.approx((low.min(), high.max()))
    assert even.spacing_mm == ((1.1, 1.6, 1.9), (1.1, 1.6, 1.9))


@pytest.mark.parametrize("dataset", ["stored", "even"])
def test_published_weights_write_the_run_s_own_label_maps(
    made: Made, weights: Path, tmp_path: Path, dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["--input", str(made.raw / "raw/images"), "--dataset", dataset]
    assert main(["predict", f"local-dir:{weights}", *source, "--output", str(tmp_path)]) == 0
    assert f"head of {dataset} (volume, a mask of 3 classes" in capsys.readouterr().out
    for path in sorted((made.raw / "out" / dataset).iterdir()):
        ours, theirs = nib.load(path), nib.load(tmp_path / path.name)
        assert np.array_equal(ours.affine, theirs.affine)
        assert np.mean(np.asarray(ours.dataobj) != np.asarray(theirs.dataobj)) < 1e-3


@pytest.mark.parametrize(("dataset", "folder"), [("clips", "clips"), ("scans", "scans/images")])
def test_published_classifiers_write_what_validation_saw(
    made: Made, weights: Path, tmp_path: Path, dataset: str, folder: str
) -> None:
    source = ["--input", str(made.raw / folder), "--dataset", dataset]
    assert main(["predict", str(weights), *source, "--output", str(tmp_path / "a.csv")]) == 0
    rows = rows_of(tmp_path / "a.csv")
    for key, expected in made.answers[dataset].items():
        found = [float(v) for k, v in rows[key].items() if k.startswith("probability_")]
        assert found == pytest.approx(expected.tolist(), abs=1e-4)


def test_features_of_a_run_and_of_its_published_weights_are_equal(
    made: Made, weights: Path, predict: Callable[..., str], tmp_path: Path
) -> None:
    predict(made.raw / "clips", tmp_path / "run.npz", "--features")
    source = ["--input", str(made.raw / "clips"), "--dataset", "clips", "--features"]
    assert main(["predict", f"local-dir:{weights}", *source, "--output", str(tmp_path / "folder")]) == 0
    ours, theirs = np.load(tmp_path / "run.npz"), np.load(tmp_path / "folder/features.npz")
    assert ours["keys"].tolist() == theirs["keys"].tolist()
    assert ours["features"].shape == (len(list((made.raw / "clips").iterdir())), 96)
    np.testing.assert_allclose(ours["features"], theirs["features"], rtol=1e-4, atol=1e-5)


def test_weights_without_heads_say_that_they_give_features_alone(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_run(made.run, str(tmp_path / "w"), domain="clips")
    words = ["predict", f"local-dir:{tmp_path / 'w'}", "--input", str(made.raw / "clips"), "--output"]
    assert main([*words, str(tmp_path / "out.csv")]) == 2
    assert "without heads; ask for its features: --features" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "out.npz"), "--features"]) == 0
    assert np.load(tmp_path / "out.npz")["features"].shape[1] == 96


HIPPOCAMPUS = """
seed_everything: 0
trainer:
  {default_root_dir: run, accelerator: cpu, devices: 1, max_steps: 150, val_check_interval: 150}
model:
  backbone: {name: test_resnet, stems: {mri: 1}, plan: {kernels: [null], strides: [1, 1, 2, 2]}}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 5.0e-3}}
  tasks:
    cut: {class_path: MedicalSegmentation, init_args: {datasets: [hippocampus]}}
data:
  root: shards
  datasets:
    hippocampus:
      batch_size: 2
      sample: {patch_size: [24, 32, 24], foreground: 0.7}
      build: {class_path: MSD, init_args: {root: RAW, task: Task04_Hippocampus, val_count: 8}}
"""


def write_dicom(source: Path, folder: Path) -> None:
    """One axial slice a file, as a scanner would; the values of `source` are whole numbers."""
    import SimpleITK as sitk

    image = sitk.ReadImage(str(source))
    stored = sitk.Cast(image, sitk.sitkInt16)
    folder.mkdir()
    direction = image.GetDirection()
    for z in range(image.GetDepth()):
        slice_ = stored[:, :, z]
        tags = {
            "0008|0060": "MR",
            "0020|000e": "1.2.826.0.1.3680043.2.1125.1",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.2",
            "0020|0013": str(z + 1),
            "0020|0032": "\\".join(f"{v:.8g}" for v in image.TransformIndexToPhysicalPoint((0, 0, z))),
            "0020|0037": "\\".join(str(direction[i]) for i in (0, 3, 6, 1, 4, 7)),
            "0018|0050": str(image.GetSpacing()[2]),
        }
        for tag, value in tags.items():
            slice_.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{z:03d}.dcm"))
        writer.Execute(slice_)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(1800)
def test_published_weights_reach_the_validation_dice_on_real_mri_and_on_its_dicom(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    (tmp_path / "config.yaml").write_text(HIPPOCAMPUS.replace("RAW", str(shared_data)))
    assert main(["fit", "--config", "config.yaml"]) == 0
    name = f"local-dir:{publish_run('run', 'weights', with_heads=True).folder}"
    checkpoint = find_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    keys = load_data("run").val_dataloader()
    raw = shared_data / "Task04_Hippocampus"
    (tmp_path / "in").mkdir()
    cases = [key for batch in keys for key in batch.keys]
    for key in cases:
        (image,) = (p for p in (raw / "imagesTr").iterdir() if p.name.startswith(f"{key}.nii"))
        (tmp_path / "in" / image.name).symlink_to(image)
    assert main(["predict", name, "--input", "in", "--output", "out"]) == 0
    for label, which in ((1, "anterior"), (2, "posterior")):
        found = []
        for path in sorted((tmp_path / "out").iterdir()):
            guess, truth = nib.load(path), nib.load(raw / "labelsTr" / path.name)
            given = nib.load(raw / "imagesTr" / path.name)
            assert guess.shape == given.shape
            assert np.array_equal(guess.affine, given.affine)
            found.append(dice(np.asarray(guess.dataobj), np.asarray(truth.dataobj), label))
        assert len(found) == len(cases)
        (metric,) = (v for k, v in checkpoint.metrics.items() if k.lower().endswith(f"dice_{which}"))
        print(which, np.mean(found), metric)
        assert np.mean(found) == pytest.approx(metric, abs=1e-4)
        assert metric > 0.2
    case = sorted((tmp_path / "in").iterdir())[0]
    write_dicom(case, tmp_path / "dicom")
    assert main(["predict", name, "--input", "dicom", "--output", "dicom.nii.gz"]) == 0
    one, other = as_ras(tmp_path / "out" / case.name), as_ras(tmp_path / "dicom.nii.gz")
    assert one.shape == other.shape
    assert np.mean(one != other) < 1e-3
