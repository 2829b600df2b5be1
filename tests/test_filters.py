"""Filters over time: every filter is in the picture, and the rows are the weights before and after training."""

from pathlib import Path

import inflate3d
import numpy as np
import pytest
import timm
import torch
from inflate3d.cli.main import main
from inflate3d.contracts import DatasetCard, InputSpec
from inflate3d.errors import InputError
from inflate3d.evaluation.pictures.filters import filter_rows
from inflate3d.inflation.taps import Taps, inflate_kernel
from inflate3d.models import BackboneConfig
from inflate3d.models.filters import draw_filters, slice_grids
from inflate3d.targets import ClassTarget
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import MultiTaskModule, write_config
from inflate3d.training.checkpoints.store import write_checkpoint
from matplotlib.image import imread
from safetensors.torch import save_file
from torch import nn

CARDS = {
    name: DatasetCard(
        *(name, "volume", name, modality, "http://x", "CC-BY-4.0", True, True, "X"),
        {"label": ClassTarget(("a", "b"))},
        InputSpec(("value",)),
    )
    for name, modality in (("scans", "ct"), ("shapes", "mask"))
}


@pytest.fixture(scope="module")
def weights_2d(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("2d") / "weights.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def stem_2d(weights_2d: Path) -> torch.Tensor:
    net = timm.create_model("test_resnet", pretrained=True, pretrained_cfg_overlay={"file": str(weights_2d)})
    return next(m for m in net.modules() if isinstance(m, nn.Conv2d)).weight.detach()


@pytest.fixture(scope="module")
def run(weights_2d: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from 2D weights with a stem for each of two datasets, whose training added 1 to every stem."""
    backbone = {
        "name": "test_resnet",
        "pretrained": True,
        "stems": {"ct": 1, "mask": 1},
        "timm_kwargs": {"pretrained_cfg_overlay": {"file": str(weights_2d)}},
    }
    task = {"class_path": "VolumeClassification", "init_args": {"datasets": list(CARDS)}}
    datasets = {name: {"batch_size": 1, "sample": {}} for name in CARDS}
    folder = tmp_path_factory.mktemp("run")
    write_config(folder, {"model": {"backbone": backbone, "tasks": {"it": task}}, "data": {"datasets": datasets}})
    tasks = {"it": VolumeClassification(datasets=list(CARDS))}
    module = MultiTaskModule(BackboneConfig(**backbone), tasks).build(CARDS)  # type: ignore[arg-type]
    with torch.no_grad():
        for stem in module.backbone.stem_switch.values():  # type: ignore[union-attr]
            stem.weight += 1  # type: ignore[operator]
    state: dict[str, object] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(state)
    write_checkpoint(folder / "checkpoints", 7, lambda p: torch.save(state, p), score=0.5, metrics={})
    return folder


def test_each_slice_holds_every_filter_on_the_scale_of_the_whole_kernel() -> None:
    filters = np.random.default_rng(0).normal(size=(10, 3, 5, 3, 3)).astype(np.float32)
    grids = slice_grids(filters)
    expected = np.round(127.5 + 127.5 * filters / np.abs(filters).max()).astype(np.uint8)
    height, width = (n // count for n, count in zip(grids.shape[1:3], (2, 5), strict=True))
    for index in range(10):
        row, column = divmod(index, 5)
        tiles = grids[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
        zoom = (width - 2) // 3
        found = tiles[:, : 3 * zoom : zoom, : 3 * zoom : zoom]
        np.testing.assert_array_equal(found.transpose(0, 3, 1, 2), expected[index].transpose(1, 0, 2, 3))


def test_slices_that_center_inflation_leaves_empty_are_grey() -> None:
    kernel = inflate_kernel(torch.randn(8, 3, 7, 7), 3, taps=Taps("center")).numpy()
    grids = slice_grids(kernel)
    assert set(np.unique(grids[0])) == set(np.unique(grids[2])) == {128, 255}
    assert len(np.unique(grids[1])) > 50


def test_a_run_shows_each_stem_before_and_after_training(run: Path, stem_2d: torch.Tensor) -> None:
    rows, missing = filter_rows(str(run))
    assert missing is None
    assert [row.title for row in rows] == [
        *("ct stem, before: inflated", "ct stem, after 7 steps"),
        *("mask stem, before: inflated", "mask stem, after 7 steps"),
    ]
    expected = inflate_kernel(stem_2d.sum(1, keepdim=True), 3, taps=Taps("center")).numpy()
    for before, after in zip(rows[::2], rows[1::2], strict=True):
        np.testing.assert_allclose(before.filters, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(after.filters, expected + 1, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_published_weights_show_the_same(run: Path, weights_2d: Path, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    assert main(["publish", str(run), "--output", str(folder)]) == 0
    expected, _ = filter_rows(str(run))
    rows, missing = filter_rows(str(folder), weights_2d=str(weights_2d))
    assert missing is None
    assert [row.title for row in rows] == [row.title for row in expected]
    for row, other in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row.filters, other.filters, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_weights_that_began_at_random_have_no_row_before_training_and_say_so(tmp_path: Path) -> None:
    net = inflate3d.create_model("test_resnet", num_classes=0)
    rows, missing = filter_rows(str(inflate3d.publish(net, str(tmp_path / "w"))))
    assert [row.title for row in rows] == ["published"]
    assert missing is not None
    assert "random" in missing


@pytest.mark.slow
def test_the_command_draws_a_2d_name(weights_2d: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "filters.png"
    arguments = ["plot", "filters", "test_resnet", "--weights_2d", str(weights_2d), "--output"]
    assert main([*arguments, str(picture)]) == 0
    assert capsys.readouterr().out == f"picture: {picture}\n"
    pixels = imread(picture)[..., :3]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    assert main([*arguments, str(tmp_path / "filters.jpg")]) == 2
    assert "ends in .png" in capsys.readouterr().err


def test_a_file_of_2d_weights_that_is_missing_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        filter_rows("test_resnet", weights_2d=str(tmp_path / "none.safetensors"))


def test_a_net_whose_first_kernels_are_small_has_no_picture_on_its_card(tmp_path: Path) -> None:
    assert not draw_filters(nn.Sequential(nn.Conv2d(3, 8, 3)), tmp_path / "conv1.png")
    assert not list(tmp_path.iterdir())
