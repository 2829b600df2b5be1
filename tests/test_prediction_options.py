"""Options of predict: mirrored copies, ensembles, probabilities, components; each is what its formula says."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from inflate3d.cli.main import main
from inflate3d.contracts import AbstractTarget, InputSpec, Intensity, Masks, Prediction, Probabilities
from inflate3d.errors import InputError
from inflate3d.evaluation.prediction import predict
from inflate3d.evaluation.prediction.answerers import Answering
from inflate3d.evaluation.prediction.answers import MapOptions
from inflate3d.evaluation.prediction.components import largest_components
from inflate3d.evaluation.prediction.member import mirror_axes, mirrorings
from inflate3d.evaluation.prediction.predict import Predictor
from inflate3d.sample import Batch
from inflate3d.targets import ClassTarget, MaskTarget
from torch import Tensor
from toy_batches import toy_card

NAMES = ("background", "a", "b")
SHAPE = (6, 5, 7)  # (X, Y, Z) of the file, larger than the patch along some axes and smaller along others
SPEC = InputSpec(("mri",), None, "RAS", Intensity("zscore"))


class ToyAnswerer:
    """Answers that know where they are: a mirrored image is answered otherwise than the image, mirrored."""

    precision = "32-true"

    def __init__(self, title: str, target: AbstractTarget, number: int, spec: InputSpec = SPEC) -> None:
        card = replace(toy_card("toy", mask=target), input=spec)
        self.title, self.target, self.number = title, target, number
        self.heads = {"toy": Answering("toy", card, target)}

    def sample(self, head: str) -> dict[str, Any]:
        return {"patch_size": [8, 4, 8]} if self.target.per_voxel else {}

    def prepare(self, head: str, device: torch.device, *, features: bool) -> None:
        pass

    def answer(self, batch: Batch) -> Prediction:
        probabilities = self.of(batch.image)
        if self.target.per_voxel:
            return Masks(probabilities)
        return Probabilities(probabilities.mean((2, 3, 4)))

    def of(self, image_BCDHW: Tensor) -> Tensor:
        """A softmax over classes of the image times weights of each voxel, in favour of the background."""
        _, _, *size = image_BCDHW.shape
        weights = torch.randn(1, len(self.target.names), *size, generator=torch.Generator().manual_seed(self.number))
        logits = image_BCDHW * weights
        logits[:, 0] += 1.5
        return logits.softmax(1)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    array = np.random.default_rng(0).normal(0, 40, SHAPE).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.diag([-1.5, 1, 2, 1.0])), tmp_path / "c.nii.gz")
    return tmp_path / "c.nii.gz"


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, ToyAnswerer]:
    """Models by name, in place of those that are loaded."""
    mask = MaskTarget(NAMES)
    toys = {
        "one": ToyAnswerer("one", mask, 1),
        "two": ToyAnswerer("two", mask, 2),
        "three": ToyAnswerer("three", mask, 3),
        "names": ToyAnswerer("names", MaskTarget(("background", "a", "c")), 1),
        "coarse": ToyAnswerer("coarse", mask, 1, replace(SPEC, spacing_mm=(2.0, 2.0, 2.0))),
        "sides": ToyAnswerer("sides", MaskTarget(("background", "kidney_left", "Right kidney")), 1),
        "class": ToyAnswerer("class", ClassTarget(NAMES), 1),
    }
    monkeypatch.setattr(predict, "answerer_of", lambda model, **_: toys[model])
    return toys


def shares_of(folder: Path) -> np.ndarray:
    """The probabilities that were written (K, D, H, W), in the axes that the net saw: W to the right."""
    written = nib.load(folder / "probabilities/c.nii.gz")
    assert written.shape == (*SHAPE, 3)
    assert np.array_equal(written.affine, np.diag([-1.5, 1, 2, 1.0]))
    return np.asarray(written.dataobj)[::-1].transpose(3, 2, 1, 0)


def seen_by(predictor: Predictor) -> Tensor:
    """The input of the net."""
    members, _ = predict.read_case(predictor.cases[0], predictor.head.card)
    return predictor.members[0].stage("c", members, 0).views["image"][None]


def cut(shares_BKDHW: Tensor) -> np.ndarray:
    """What was read of a padded answer: SHAPE is 7, 5, 6 along D, H, W, a patch 8, 4, 8, and half of 1 is 1 before."""
    assert shares_BKDHW.shape[2:] == (8, 5, 8)
    return shares_BKDHW[0, :, 1:, :, 1:7].numpy()


def test_without_options_a_map_is_the_likeliest_class(models: dict[str, ToyAnswerer], image: Path, tmp_path: Path):
    predictor = Predictor("one", image)
    predictor.write(tmp_path / "out.nii.gz")
    expected = cut(models["one"].of(seen_by(predictor))).argmax(0)
    written = np.asarray(nib.load(tmp_path / "out.nii.gz").dataobj)
    assert np.array_equal(written[::-1].transpose(2, 1, 0), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.nii.gz", "out.nii.gz"]


@pytest.mark.parametrize(("axes", "used"), [("", "DHW"), ("HW", "HW"), ("D", "D")])
def test_mirrored_copies_are_averaged_each_turned_back(
    models: dict[str, ToyAnswerer], image: Path, tmp_path: Path, axes: str, used: str
) -> None:
    predictor = Predictor("one", image, mirror=axes, maps=MapOptions(probabilities=True))
    predictor.write(tmp_path / "out")
    x, answers = seen_by(predictor), []
    for chosen in product((False, True), repeat=3):
        dims = [dim for dim, is_flipped in zip((2, 3, 4), chosen, strict=True) if is_flipped]
        if {"DHW"[dim - 2] for dim in dims} <= set(used):
            answers.append(models["one"].of(x.flip(dims)).flip(dims))
    assert len(answers) == 2 ** len(used)
    expected = cut(torch.stack(answers).mean(0))
    np.testing.assert_allclose(shares_of(tmp_path / "out"), expected, atol=1e-6)
    labels = np.asarray(nib.load(tmp_path / "out/c.nii.gz").dataobj)[::-1].transpose(2, 1, 0)
    assert np.array_equal(labels, shares_of(tmp_path / "out").argmax(0))
    assert not np.allclose(shares_of(tmp_path / "out"), cut(models["one"].of(x)), atol=1e-2)


def test_models_are_averaged(models: dict[str, ToyAnswerer], image: Path, tmp_path: Path) -> None:
    predictor = Predictor("one", image, others=["two", "three"], maps=MapOptions(probabilities=True))
    predictor.write(tmp_path / "out")
    x = seen_by(predictor)
    expected = cut(torch.stack([models[name].of(x) for name in ("one", "two", "three")]).mean(0))
    np.testing.assert_allclose(shares_of(tmp_path / "out"), expected, atol=1e-6)


def test_one_model_twice_is_the_model(models: dict[str, ToyAnswerer], image: Path, tmp_path: Path) -> None:
    for folder, others in (("one", []), ("twice", ["one"])):
        Predictor("one", image, others=others, maps=MapOptions(probabilities=True)).write(tmp_path / folder)
    for name in ("c.nii.gz", "probabilities/c.nii.gz"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


@pytest.mark.parametrize(("chosen", "kept"), [((), [1, 2]), (("b",), [2])])
def test_only_the_largest_component_is_written(
    models: dict[str, ToyAnswerer], image: Path, tmp_path: Path, chosen: tuple[str, ...], kept: list[int]
) -> None:
    Predictor("one", image).write(tmp_path / "plain.nii.gz")
    Predictor("one", image, maps=MapOptions(largest_component=chosen)).write(tmp_path / "largest.nii.gz")
    plain, largest = (np.asarray(nib.load(tmp_path / f"{n}.nii.gz").dataobj) for n in ("plain", "largest"))
    assert np.array_equal(largest, largest_components(plain, kept))
    assert not np.array_equal(largest, plain)


def test_classes_are_averaged_as_masks_are(models: dict[str, ToyAnswerer], image: Path, tmp_path: Path) -> None:
    predictor = Predictor("class", image, mirror="W")
    predictor.write(tmp_path / "out.csv")
    x = seen_by(predictor)
    expected = (models["class"].of(x) + models["class"].of(x.flip(-1)).flip(-1)).mean((2, 3, 4))[0] / 2
    row = (tmp_path / "out.csv").read_text().splitlines()[1].split(",")
    assert [float(cell) for cell in row[2:]] == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_image_itself_comes_first() -> None:
    assert mirrorings("") == [()]
    assert mirrorings("DW") == [(), (-3,), (-1,), (-3, -1)]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"others": ["names"]}, "'toy' of one tells mask: background, a, b, 'toy' of names mask: background, a, c; choose"),
    ({"others": ["coarse"]}, "in RAS axes, 'toy' of coarse volumes of 1 channels in RAS axes at 2 x 2 x 2 mm"),
    ({"others": ["class"]}, "'toy' of class class_label: background, a, b"),
    ({"others": ["two"], "features": True}, "not in features; give one model"),
    ({"mirror": "", "features": True}, "--mirror averages what heads answer, not features"),
    ({"mirror": "X"}, "--mirror: 'X' is none of the axes that volumes are mirrored along: DHW"),
    ({"mirror": "DD"}, "--mirror: 'DD' is none of the axes"),
    (
        {"model": "sides", "mirror": ""},
        "kidney_left, Right kidney would change ends when mirrored along W; mirror",
    ),
    ({"model": "class", "maps": MapOptions(probabilities=True)}, "but this head gives 3 classes"),
    ({"maps": MapOptions(largest_component=("A",))}, "--largest-component: unknown class 'A'; close names: 'a'"),
    ({"maps": MapOptions(largest_component=("background",))}, "--largest-component: unknown class 'background'"),
    ({"maps": MapOptions(largest_component=()), "features": True}, "--largest-component is for label maps"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_cannot_be_averaged_or_written_is_refused(
    models: dict[str, ToyAnswerer], image: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Predictor(options.pop("model", "one"), image, **options)


def test_classes_with_sides_may_be_mirrored_along_the_others(models: dict[str, ToyAnswerer], image: Path) -> None:
    assert Predictor("sides", image, mirror="DH").axes == "DH"


@pytest.mark.parametrize(
    ("names", "orientation", "wrong"),
    [
        (("background", "Anterior", "Posterior"), "RAS", "H"),
        (("background", "Anterior", "Posterior"), "AIR", "W"),
        (("background", "left atrium"), "RAS", "W"),
        (("background", "left atrium"), "PSL", "D"),
        (("background", "inferior vena cava", "lower leg"), "RAS", ""),
        (("background", "upper_lobe", "lower lobe"), "RAS", "D"),
        (("background", "bright", "copyright"), "RAS", ""),
    ],
)
def test_a_mirror_image_must_not_turn_one_class_into_another(names: Any, orientation: str, wrong: str) -> None:
    target = MaskTarget(names)
    card = replace(toy_card("toy", mask=target), input=InputSpec(("mri",), None, orientation))
    for axis in "DHW":
        if axis == wrong:
            with pytest.raises(InputError, match=f"would change ends when mirrored along {axis}; leave --mirror out"):
                mirror_axes(axis, card, target)
        else:
            assert mirror_axes(axis, card, target) == axis


UNLIKE = (
    "head is unlike the 180 volumes that hippocampus was trained on, so the answer may mean nothing: "
    "its field of view (D x H x W) is 170 x 230 x 180 mm, in training 26 x 40 x 31 to 47 x 58 x 42 mm; "
    "its spacing (D x H x W) is 5 x 5 x 5 mm, in training 1 x 1 x 1 to 1 x 1 x 1 mm"
)


@pytest.mark.slow
def test_the_command_takes_every_option_on_the_shipped_weight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    draw = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name, spacing_mm in (("head", 5.0), ("crop", 1.0)):
        array = draw.normal(100, 20, (36, 46, 34)).astype(np.float32)
        nib.save(nib.Nifti1Image(array, np.diag([spacing_mm] * 3 + [1.0])), tmp_path / f"in/{name}.nii.gz")
    weight, source = "tf_efficientnet_lite0_3d.v2", ["--input", str(tmp_path / "in"), "--dataset", "hippocampus"]
    run: Callable[..., int] = lambda *words: main(["predict", *words])  # noqa: E731
    assert run(weight, *source, "--output", str(tmp_path / "plain")) == 0
    assert run(weight, weight, *source, "--output", str(tmp_path / "all"), "--probabilities", "--mirror", "DW") == 0
    assert capsys.readouterr().out.count(f"{weight}, head of hippocampus") == 3
    assert caplog.messages == [UNLIKE] * 2  # once each time, though the model is asked twice the second time
    shares = np.asarray(nib.load(tmp_path / "all/probabilities/crop.nii.gz").dataobj)
    assert np.array_equal(shares.argmax(-1), np.asarray(nib.load(tmp_path / "all/crop.nii.gz").dataobj))
    assert np.allclose(shares.sum(-1), 1, atol=1e-5)
    labels = ["--labels", str(tmp_path / "plain")]
    options = [*source, "--output", str(tmp_path / "kept"), *labels, "--largest-component", "Anterior", "Posterior"]
    assert run(weight, *options) == 0
    said = capsys.readouterr().out
    assert "HD95 " in said
    assert "average surface distance" in said
