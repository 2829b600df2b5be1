"""The weights that come with the package: they load without a network, replay, and name what they were made of."""

import fnmatch
import json
import socket
import tomllib
import warnings
from pathlib import Path

import inflate3d
import pytest
import torch
from inflate3d.cli.main import main
from inflate3d.models.publication.fetch import published_folder
from inflate3d.models.publication.index import entries
from inflate3d.models.publication.replay import TOLERANCE, check_replay
from inflate3d.models.publication.schema import read_published_config
from inflate3d.models.publication.tensor_file import read_tensors
from inflate3d.publishing.licences import commercial_use, may_be_published

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "platform" / "inflate3d" / "models" / "weights"
NAMES = sorted(folder.name for folder in WEIGHTS.iterdir())


@pytest.fixture(scope="module")
def folder() -> Path:
    (name,) = NAMES
    found = published_folder(name)
    assert found is not None
    return found


def test_the_index_pins_every_folder_of_weights() -> None:
    for name in NAMES:
        entry = entries()[name]
        assert entry.source == f"local-dir:{WEIGHTS / name}"
        assert entry.sha256 is not None, "published_folder compares it with the folder's SHA256SUMS"
        assert published_folder(name) == WEIGHTS / name


def test_it_loads_without_a_network_and_its_replay_holds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        net = inflate3d.create_model(folder.name, pretrained=True)
    assert check_replay(net, folder) < TOLERANCE
    weight = read_tensors(folder / "model.safetensors")["conv_head.weight"]
    assert torch.equal(net.state_dict()["conv_head.weight"], weight.float())
    with torch.no_grad():
        assert net.eval()(torch.zeros(2, 1, 16, 32, 32)).shape == (2, net.num_features)


def test_it_tells_colours_apart_and_answers_grey_clips_as_volumes(folder: Path) -> None:
    grey, rgb = (inflate3d.create_model(folder.name, pretrained=True, in_chans=n).eval() for n in (1, 3))
    clip, red = torch.rand(1, 1, 8, 32, 32), torch.rand(1, 1, 8, 32, 32) * torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(rgb(clip.expand(-1, 3, -1, -1, -1)), grey(clip), rtol=1e-4, atol=1e-4)
        assert (rgb(red) - rgb(red.roll(1, 1))).abs().max() > 0.1  # green of the same shape
        assert torch.equal(grey(red.sum(1, keepdim=True)), grey(red.roll(1, 1).sum(1, keepdim=True)))


def test_its_input_contract_prepares_a_volume(folder: Path) -> None:
    net = inflate3d.create_model(folder.name, pretrained=True)
    volume = torch.arange(8.0).reshape(1, 2, 2, 2) * 100
    x = inflate3d.create_transform(net)(volume)
    torch.testing.assert_close(x, (volume - volume.mean()) / volume.std(correction=0), rtol=1e-4, atol=1e-4)


def test_its_segmenter_comes_whole_with_the_names_of_its_classes(folder: Path) -> None:
    net = inflate3d.create_segmenter(folder.name, pretrained=True).eval()
    assert net.label_names == ["background", "Anterior", "Posterior"]
    with torch.no_grad():
        assert net(torch.zeros(1, 1, 16, 32, 32)).shape == (1, 3, 16, 32, 32)


@pytest.mark.data
def test_it_segments_held_out_hippocampi(folder: Path, shared_data: Path, tmp_path: Path) -> None:
    import nibabel
    import numpy as np
    from inflate3d.datasets.msd import MSD
    from inflate3d.evaluation.prediction.predict import Predictor

    root = shared_data / "Task04_Hippocampus"
    held_out = [case for case in MSD(root, val_count=40, seed=0).cases() if case.split == "val"][:3]
    (tmp_path / "images").mkdir()
    for case in held_out:
        (tmp_path / "images" / Path(case.source[0]).name).symlink_to((root / case.source[0]).resolve())
    Predictor(folder.name, tmp_path / "images", dataset="hippocampus").write(tmp_path / "masks")
    for case in held_out:
        truth = np.asarray(nibabel.load(root / case.source[1]).dataobj).round()
        (written,) = (tmp_path / "masks").glob(f"{Path(case.source[0]).name.split('.')[0]}*")
        mask = np.asarray(nibabel.load(written).dataobj)
        for label in (1, 2):  # the floor of a mean-shape prior is .72 / .68
            dice = 2 * ((mask == label) & (truth == label)).sum() / ((mask == label).sum() + (truth == label).sum())
            assert dice > 0.75, (case.key, label)


def test_its_card_names_every_dataset_and_licence(folder: Path) -> None:
    config, card = read_published_config(folder), (folder / "README.md").read_text(encoding="utf-8")
    data, source = config["training"]["data"], config["source_weights"]
    assert [entry["licence"] for entry in data] == ["Apache-2.0"] * 3 + ["CC-BY-SA-4.0"]
    assert source["licence"] == "apache-2.0"
    for entry in data:
        assert f"| {entry['title']} | {entry['licence']} | yes | {entry['url']} |" in card
    assert f"| 2D weights {source['name']} | {source['licence']} |" in card
    assert may_be_published(data)
    allowed, why = commercial_use(data, source["licence"], has_source=True)
    assert f"Commercial use of these weights: **{'yes' if allowed else 'no'}** ({why})." in card
    assert entries()[folder.name].commercial_use is allowed
    assert folder.name in card
    assert "scratch" in card


def test_no_folder_is_private_or_large_and_all_files_are_package_data() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["inflate3d.models"]
    files = [file for file in WEIGHTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 14e6
    for file in files:
        assert file.name != "PRIVATE"
        assert any(fnmatch.fnmatch(file.relative_to(WEIGHTS.parent).as_posix(), p) for p in patterns), file


def test_the_command_lists_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["models", "list", "--published"]) == 0
    listed = capsys.readouterr().out
    packaged = json.loads((WEIGHTS.parent / "pretrained.json").read_text(encoding="utf-8"))["models"]
    assert set(NAMES) <= set(packaged)
    assert all(name in listed for name in packaged)
