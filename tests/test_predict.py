"""Prediction on raw files, by runs and published weights: it lies where its input lies, as validation saw it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from inflate3d.cli.main import main
from inflate3d.contracts import InputSpec
from inflate3d.data.raw.readers import read_volume, write_nifti
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.evaluation.prediction.answers import onto_grid
from inflate3d.evaluation.prediction.inputs import find_cases, media_in, read_case
from inflate3d.evaluation.prediction.member import mixed_precision
from inflate3d.models import BackboneConfig, create_model
from inflate3d.nn.domain import Domain, convert_norms
from inflate3d.publishing import publish
from inflate3d.targets import MaskTarget
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import MultiTaskModule, find_checkpoint, write_config
from inflate3d.training.checkpoints.store import write_checkpoint
from inflate3d.training.run.saved import choose_checkpoint, load_module
from toy_batches import toy_card
from trained_run import CODES, Made, affine_of, as_ras, dice, rows_of

pytestmark = pytest.mark.slow  # its runs alone take half a minute to make

# ------------------------------------------------------------------------------------------------------- segmentation


@pytest.mark.parametrize("dataset", ["stored", "even"])
def test_label_maps_have_the_shape_and_the_place_of_their_input(made: Made, dataset: str) -> None:
    written = sorted(p.name for p in (made.raw / "out" / dataset).iterdir())
    assert written == [f"case_{i}.nii.gz" for i in range(len(CODES))]
    for name in written:
        given, labels = nib.load(made.raw / "raw/images" / name), nib.load(made.raw / "out" / dataset / name)
        assert labels.shape == given.shape
        assert labels.get_data_dtype() == np.uint8
        assert np.array_equal(labels.affine, given.affine)
        for code in ("get_qform", "get_sform"):
            one, other = getattr(labels, code)(coded=True), getattr(given, code)(coded=True)
            assert one[1] == other[1]
            assert np.array_equal(one[0], other[0])
        assert set(np.unique(labels.dataobj)) <= {0, 1, 2}


def test_dice_of_the_written_files_is_the_dice_of_validation(made: Made) -> None:
    checkpoint = find_checkpoint(made.run)
    assert checkpoint is not None
    for label, name in ((1, "box"), (2, "bar")):
        found = []
        for i in range(5, len(CODES)):  # in the files' own axes, where nothing was turned
            guess, truth = (nib.load(f / f"case_{i}.nii.gz") for f in (made.raw / "out/stored", made.raw / "raw/masks"))
            found.append(dice(np.asarray(guess.dataobj), np.asarray(truth.dataobj), label))
        assert np.mean(found) == pytest.approx(checkpoint.metrics[f"val/cut/stored/dice_{name}"], abs=1e-6)
    assert 0.3 < checkpoint.metrics["val/cut/stored/dice"] < 1  # else this says little


def test_true_labels_give_each_case_its_dice_at_its_own_spacing(
    made: Made, predict: Callable[..., str], tmp_path: Path
) -> None:
    masks = tmp_path / "labels"
    shutil.copytree(made.raw / "raw/masks", masks)
    said = predict(made.raw / "raw/images", tmp_path / "out", "--dataset", "even", "--labels", str(masks))
    rows = rows_of(tmp_path / "out/dice.csv")
    assert list(rows) == [*(f"case_{i}" for i in range(len(CODES))), "mean"]
    for i in range(len(CODES)):
        guess, truth = (nib.load(f / f"case_{i}.nii.gz").dataobj for f in (tmp_path / "out", masks))
        wanted = [dice(np.asarray(guess), np.asarray(truth), label) for label in (1, 2)]
        row = rows[f"case_{i}"]
        assert [float(row[c]) for c in ("dice_box", "dice_bar")] == pytest.approx(wanted, abs=1e-5)
        assert float(row["dice"]) == pytest.approx(np.mean(wanted), abs=1e-5)
    assert f"Dice of {len(CODES)} cases: {float(rows['mean']['dice']):.4f}" in said

    one = made.raw / "raw/images/case_6.nii.gz"
    predict(one, tmp_path / "one.nii.gz", "--dataset", "even", "--labels", str(masks / "case_6.nii.gz"))
    assert rows_of(tmp_path / "dice.csv")["case_6"] == rows["case_6"]
    (masks / "case_6.nii.gz").rename(masks / "case_66.nii.gz")
    said = predict(one, tmp_path / "x.nii.gz", "--dataset", "even", "--labels", str(masks), code=2)
    assert "has no file for 1 of 1 cases: 'case_6'; close names there: 'case_66'" in said
    said = predict(one, tmp_path / "x.nii.gz", "--dataset", "even", "--labels", str(masks / "case_5.nii.gz"), code=2)
    assert "case_5.nii.gz is (21, 24, 19) along (D, H, W), not (21, 24, 17)" in said
    said = predict(made.raw / "clips", tmp_path / "clips", "--labels", str(masks), code=2)
    assert "--labels: 'clips' gives 4 classes" in said
    assert "does not say that: give a CSV with the columns key and label" in said


def test_resampled_label_maps_are_nearest_to_what_validation_saw(made: Made) -> None:
    for i in range(5, len(CODES)):
        path = made.raw / f"raw/images/case_{i}.nii.gz"
        seen = read_volume(path, spacing_mm=(1.1, 1.6, 1.9))
        labels = made.answers["even"][f"case_{i}"].argmax(0).numpy()
        assert labels.shape == seen.array.shape[1:]
        written = nib.load(made.raw / "out/even" / path.name)
        index = np.argwhere(np.ones(written.shape, bool))
        at = (np.c_[index, np.ones(len(index))] @ (np.linalg.inv(seen.affine) @ written.affine).T)[:, :3]
        clear = (np.abs(at % 1 - 0.5) > 1e-3).all(1)  # a tie may go either way
        w, h, d = np.clip(np.rint(at), 0, np.array(labels.shape[::-1]) - 1).astype(int).T
        assert clear.mean() > 0.5
        assert np.array_equal(np.asarray(written.dataobj).ravel()[clear], labels[d, h, w][clear])


def test_one_volume_gets_one_answer_whatever_its_axes_and_format(
    made: Made, predict: Callable[..., str], tmp_path: Path
) -> None:
    import SimpleITK as sitk

    source = nib.load(made.raw / "raw/images/case_6.nii.gz")
    (tmp_path / "in").mkdir()
    for codes in ("RAS", "LPS", "IAR"):
        ornt = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(source.affine), nib.orientations.axcodes2ornt(tuple(codes))
        )
        nib.save(source.as_reoriented(ornt), tmp_path / "in" / f"{codes}.nii")
    itk = sitk.ReadImage(str(tmp_path / "in/IAR.nii"))
    sitk.WriteImage(itk, str(tmp_path / "in/itk.mha"))
    sitk.WriteImage(itk, str(tmp_path / "in/other.nrrd"))
    predict(tmp_path / "in", tmp_path / "out", "--dataset", "stored")
    expected = made.answers["stored"]["case_6"].argmax(0).numpy()
    assert len(np.unique(expected)) > 1
    for name in ("RAS", "LPS", "IAR", "itk", "other"):
        assert np.array_equal(as_ras(tmp_path / "out" / f"{name}.nii.gz"), expected), name
    assert nib.load(tmp_path / "out/LPS.nii.gz").shape == nib.load(tmp_path / "in/LPS.nii").shape
    for name in ("itk", "other"):
        written = nib.load(tmp_path / "out" / f"{name}.nii.gz")
        assert np.allclose(written.affine, nib.load(tmp_path / "in/IAR.nii").affine, atol=1e-4)


def test_a_volume_smaller_than_the_window_is_answered_without_its_padding(
    made: Made, predict: Callable[..., str], tmp_path: Path
) -> None:
    image = np.random.default_rng(1).normal(200, 300, (3, 13, 5)).astype(np.int16)
    affine = affine_of("PSL", image.shape)
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "thin.nii.gz")
    predict(tmp_path / "thin.nii.gz", tmp_path / "mine.nii.gz", "--dataset", "stored")
    written = nib.load(tmp_path / "mine.nii.gz")
    assert written.shape == (3, 13, 5)
    assert np.allclose(written.affine, affine, atol=1e-5)
    predict(tmp_path / "thin.nii.gz", tmp_path / "folder", "--dataset", "even")
    assert nib.load(tmp_path / "folder/thin.nii.gz").shape == (3, 13, 5)


@pytest.mark.parametrize("codes", CODES)
def test_labels_come_back_to_every_voxel_from_any_orientation(tmp_path: Path, codes: str) -> None:
    shape = (5, 6, 7)
    stored = np.arange(np.prod(shape)).reshape(shape).astype(np.int16)
    affine = affine_of(codes, shape)
    nib.save(nib.Nifti1Image(stored, affine), tmp_path / "a.nii")
    turned = read_volume(tmp_path / "a.nii")
    affine = np.asarray(read_volume(tmp_path / "a.nii", orientation=None).affine)
    assert np.array_equal(onto_grid(turned.array[0], np.asarray(turned.affine), shape, affine), stored)
    # Blocks survive the way to a finer grid and back.
    finer = read_volume(tmp_path / "a.nii", spacing_mm=(0.4, 0.3, 0.5))
    labels = onto_grid(stored.transpose(2, 1, 0), affine, finer.array.shape[:0:-1], np.asarray(finer.affine))
    back = onto_grid(labels.transpose(2, 1, 0), np.asarray(finer.affine), shape, affine)
    assert np.array_equal(back, stored)


# ----------------------------------------------------------------------------------------------------- classification


@pytest.mark.parametrize(("dataset", "folder"), [("clips", "clips"), ("scans", "scans/images")])
def test_the_table_holds_what_validation_saw(
    made: Made, predict: Callable[..., str], tmp_path: Path, dataset: str, folder: str
) -> None:
    options = [] if dataset == "clips" else ["--dataset", dataset]  # the only one that takes videos
    printed = predict(made.raw / folder, tmp_path / "out", *options)
    assert f"head of {dataset}" in printed
    rows = rows_of(tmp_path / "out/predictions.csv")
    assert len(rows) == len(list((made.raw / folder).iterdir()))
    classes = load_module(made.run).cards[dataset].targets["label"].names
    for key, expected in made.answers[dataset].items():
        assert list(rows[key]) == ["key", "predicted", *(f"probability_{name}" for name in classes)]
        found = [float(rows[key][f"probability_{name}"]) for name in classes]
        assert found == pytest.approx(expected.tolist(), abs=2e-6)
        assert rows[key]["predicted"] == classes[int(expected.argmax())]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["predictions.csv"]


def test_one_clip_into_a_csv_of_any_name(made: Made, predict: Callable[..., str], tmp_path: Path) -> None:
    predict(made.raw / "clips/val_0001.mp4", tmp_path / "deep/mine.csv")
    assert list(rows_of(tmp_path / "deep/mine.csv")) == ["val_0001"]


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_mixed_precision_is_that_of_validation(precision: str, dtype: torch.dtype) -> None:
    with mixed_precision(precision, torch.device("cpu")):
        assert torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == dtype


# -------------------------------------------------------------------------------------------------------------- input


def test_channels_in_files_of_their_own_are_one_case(tmp_path: Path) -> None:
    card = toy_card("two", mask=MaskTarget(("a", "b")))
    two = replace(card, input=InputSpec(("t1", "t2"), None, "RAS"))
    for name in ("p_0000", "p_0001", "q_0000"):
        write_nifti(tmp_path / f"{name}.nii.gz", np.full((3, 4, 5), ord(name[0]) + int(name[-1]), np.int16), np.eye(4))
    whole, halved = find_cases(tmp_path, two)
    assert (whole.key, halved.key) == ("p", "q")
    assert read_case(whole, two)[0]["image"][:, 0, 0, 0].tolist() == [ord("p"), ord("p") + 1]
    with pytest.raises(InputError, match=r"q_0001\.nii\.gz"):
        read_case(halved, two)
    assert [c.key for c in find_cases(tmp_path, card)] == ["p_0000", "p_0001", "q_0000"]  # one channel, one file
    (tmp_path / "p_0001.nii.gz").unlink()
    assert [c.key for c in find_cases(tmp_path, card)] == ["p", "q"]


@pytest.mark.data
def test_a_dicom_series_is_one_case(made: Made, predict: Callable[..., str], tmp_path: Path, shared_data: Path) -> None:
    series = shared_data / "dicom_ct"
    predict(series, tmp_path, "--dataset", "scans")
    assert list(rows_of(tmp_path / "predictions.csv")) == ["dicom_ct"]
    turned, stored = read_volume(series), read_volume(series, orientation=None)
    back = onto_grid(turned.array[0], np.asarray(turned.affine), stored.array.shape[:0:-1], np.asarray(stored.affine))
    assert np.array_equal(back, stored.array[0].transpose(2, 1, 0))


# -------------------------------------------------------------------------------------------------------------- faults


def test_unreadable_cases_are_named_after_the_others_were_done(
    made: Made, predict: Callable[..., str], tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(made.raw / "raw/images", folder)
    whole = (folder / "case_2.nii.gz").read_bytes()
    (folder / "case_2.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "._case_3.nii.gz").write_bytes(b"what macOS leaves behind")
    message = predict(folder, tmp_path / "out", "--dataset", "stored", code=2)
    assert "1 of 8 cases could not be read; the other 7 are in" in message
    assert "case_2: " in message
    assert "truncated" in message
    assert len(list((tmp_path / "out").iterdir())) == 7


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("clip", [], "no file or folder"),
        ("clip", [], "close names: 'clips'"),
        ("config.yaml", [], "is neither video nor volume"),
        ("shadow", [], "(for those, folders below it are not searched)"),
        (
            "raw/images",
            [],
            "Name one by --dataset: stored (volume, a mask of 3 classes: background, box, bar), even (volume",
        ),
        ("raw/images", ["--dataset", "store"], "--dataset: unknown dataset 'store'; close names: 'stored'"),
        ("raw/images", ["--dataset", "clips"], "'clips' takes videos, but --input holds volumes"),
        ("clips", ["--checkpoint", "step-00000099"], "step-00000099 does not exist"),
        ("clips", ["--device", "abacus"], "--device: 'abacus' cannot be used"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_few_words(
    made: Made, predict: Callable[..., str], tmp_path: Path, source: str, options: list[str], message: str
) -> None:
    (made.raw / "shadow").mkdir(exist_ok=True)
    assert message in predict(made.raw / source, tmp_path / "out", *options, code=2)
    assert not (tmp_path / "out").exists()


def test_an_input_is_never_overwritten(made: Made, predict: Callable[..., str], tmp_path: Path) -> None:
    image = shutil.copy(made.raw / "raw/images/case_1.nii.gz", tmp_path / "a.nii.gz")
    before = Path(image).read_bytes()
    assert "would be overwritten" in predict(tmp_path, tmp_path, "--dataset", "stored", code=2)
    assert Path(image).read_bytes() == before


def test_files_that_would_be_called_the_same_are_refused(tmp_path: Path) -> None:
    card = toy_card("one")
    for name in ("a.nii", "a.nii.gz"):
        write_nifti(tmp_path / name, np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(InputError, match=r"a\.nii and a\.nii\.gz would both be called 'a'"):
        find_cases(tmp_path, card)
    assert media_in(tmp_path) == {"volume"}


def test_a_folder_that_is_no_run_or_has_no_checkpoint_is_refused(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ["--input", str(made.raw / "clips"), "--output", str(tmp_path / "out")]
    for run, message in ((tmp_path / "none", "no run folder"), (tmp_path, "it has no config.yaml")):
        assert main(["predict", str(run), *rest]) == 2
        assert message in capsys.readouterr().err
    shutil.copy(made.run / "config.yaml", tmp_path)
    assert main(["predict", str(tmp_path), *rest]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- the saved run


@pytest.mark.parametrize("norm", ["shared", "group"])
def test_a_run_on_a_published_net_needs_its_directory_no_more(tmp_path: Path, norm: str) -> None:
    net = create_model("test_resnet", plan="i3d", num_classes=0)
    if norm == "group":
        convert_norms(net, "group", Domain())
    published = publish(net, str(tmp_path / "published"), norm=norm)
    config = {"backbone": {"name": f"local-dir:{published}", "pretrained": True, "stems": {"mask": 1}}}
    task = VolumeClassification(datasets=["shapes"])
    module = MultiTaskModule(BackboneConfig(**config["backbone"]), {"shape": task})
    module.build({"shapes": Toy(kind="volume_classification").card}).eval()
    tasks = {"shape": {"class_path": "VolumeClassification", "init_args": {"datasets": ["shapes"]}}}
    write_config(
        tmp_path / "run", {"model": {**config, "tasks": tasks}, "data": {"datasets": {"shapes": {"batch_size": 1}}}}
    )
    state: dict[str, object] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(state)
    write_checkpoint(tmp_path / "run/checkpoints", 3, lambda path: torch.save(state, path), score=None, metrics={})
    shutil.rmtree(published)
    assert choose_checkpoint(tmp_path / "run", "best").step == 3  # without a score, best is last
    again = load_module(tmp_path / "run", "step-00000003")
    image = torch.rand(1, 1, 12, 12, 12)
    with torch.no_grad():
        one, other = (m.backbone(image, domain="shapes").pooled for m in (module, again))
    assert torch.equal(one, other)
