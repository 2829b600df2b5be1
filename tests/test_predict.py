"""Prediction on raw files, by runs and published weights: it lies where its input lies, as validation saw it."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from inflate3d.cli.main import main
from inflate3d.contracts import InputSpec
from inflate3d.data.raw.readers import read_volume, write_nifti
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.datasets.volume_csv import VolumeCSV
from inflate3d.errors import InputError
from inflate3d.evaluation.prediction.answerers import answerer_of
from inflate3d.evaluation.prediction.answers import onto_grid
from inflate3d.evaluation.prediction.inputs import find_cases, media_in, read_case
from inflate3d.evaluation.prediction.member import mixed_precision
from inflate3d.models import BackboneConfig, create_model
from inflate3d.nn.domain import Domain, convert_norms
from inflate3d.publishing import publish
from inflate3d.publishing.from_run import publish_run
from inflate3d.targets import MaskTarget
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import MultiTaskModule, find_checkpoint, write_config
from inflate3d.training.checkpoints.store import write_checkpoint
from inflate3d.training.run.saved import choose_checkpoint, load_data, load_module
from toy_batches import toy_card

pytestmark = pytest.mark.slow  # its runs alone take half a minute to make

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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Train for eight steps through the command, note what validation sees, and take the shards away."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("predict")
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
        yield made


@pytest.fixture
def predict(made: Made, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `platform predict` on the finished run; return what it printed, after checking the exit code."""

    def run(source: Path, output: Path, *options: str, code: int = 0) -> str:
        words = ["predict", str(made.run), "--input", str(source), "--output", str(output), "--device", "cpu", *options]
        assert main(words) == code
        seen = capsys.readouterr()
        return seen.err if code else seen.out

    return run


def rows_of(table: Path) -> dict[str, dict[str, str]]:
    with table.open(newline="") as file:
        return {row["key"]: row for row in csv.DictReader(file)}


def as_ras(path: Path) -> np.ndarray:
    return read_volume(path, is_mask=True).array[0]


def dice(guess: np.ndarray, truth: np.ndarray, label: int) -> float:
    return 2 * ((guess == label) & (truth == label)).sum() / ((guess == label).sum() + (truth == label).sum())


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


# ---------------------------------------------------------------------------------------------------- published weights


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
