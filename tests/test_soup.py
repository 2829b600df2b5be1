"""Averages of nets: between a run's start and its end, over several runs, and statistics computed again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import inflate3d
import numpy as np
import pytest
import timm
import torch
from inflate3d.cli.main import main
from inflate3d.contracts import DatasetCard, InputSpec
from inflate3d.data.shards.manifest import Manifest
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.models import Backbone, BackboneConfig
from inflate3d.publishing import publish_run, publish_soup
from inflate3d.publishing import recalibrated as recalibration
from inflate3d.publishing.average import averaged_tensors
from inflate3d.publishing.contents import published_contents
from inflate3d.publishing.from_run import run_contents, split_domains
from inflate3d.publishing.recalibrated import Recalibration, _images, recalibrated
from inflate3d.publishing.soup import check_alike, shares_of
from inflate3d.targets import ClassTarget
from inflate3d.tasks.video_action import VideoAction
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import MultiTaskModule, write_config
from inflate3d.training.checkpoints.store import write_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

CLIPS = DatasetCard(
    *("clips", "video", "Clips", "rgb", "http://clips", "CC-BY-4.0", True, True, ""),
    {"label": ClassTarget(("jump", "run"))},
    InputSpec(("red", "green", "blue")),
)
MakeRun = Callable[..., Path]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(recalibration, "BATCHES", 3)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    build_shards(Toy(kind="volume_classification", num_train=8, num_val=4, size=16), root / "shapes", progress=False)
    return root


@pytest.fixture(scope="module")
def weights_2d(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("2d") / "test_resnet.safetensors"
    torch.manual_seed(9)
    net = timm.create_model("test_resnet")
    net.train()(torch.randn(4, 3, 64, 64))  # statistics of their own
    save_file(net.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def make_run(shards: Path, weights_2d: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """What a fit of two datasets leaves behind, without the fit: every tensor has moved by the seed's noise."""

    def make(seed: int, *, average: bool = False, clips: DatasetCard = CLIPS, **backbone: Any) -> Path:
        folder = tmp_path_factory.mktemp(f"seed{seed}-")
        overlay = {"pretrained_cfg_overlay": {"file": str(weights_2d)}}
        told = {"name": "test_resnet", "pretrained": True, "stems": {"mask": 1, "rgb": 3}, "timm_kwargs": overlay}
        told |= backbone
        tasks: dict[str, Any] = {
            "shape": VolumeClassification(datasets=["shapes"]),
            "act": VideoAction(datasets=["clips"]),
        }
        module = MultiTaskModule(BackboneConfig(**told), tasks)
        module.seed = seed
        module.build({"shapes": Manifest.load(shards / "shapes").card, "clips": clips})
        module.load_state_dict(moved(module.state_dict(), seed))
        state: dict[str, Any] = {"state_dict": module.state_dict()}
        module.on_save_checkpoint(state)
        if average:
            state["ema"] = {"decay": 0.9, "updates": 1, "weights": moved(module.state_dict(), seed + 100)}
        names = {"shape": ("VolumeClassification", "shapes"), "act": ("VideoAction", "clips")}
        config = {
            "seed_everything": seed,
            "model": {
                "backbone": told,
                "tasks": {n: {"class_path": c, "init_args": {"datasets": [d]}} for n, (c, d) in names.items()},
            },
            "data": {"root": str(shards), "datasets": {"shapes": {"batch_size": 2}, "clips": {"batch_size": 2}}},
        }
        write_config(folder, config)
        scores = {"val/score": 0.5}
        write_checkpoint(folder / "checkpoints", 7, lambda p: torch.save(state, p), score=0.5, metrics=scores)
        return folder

    return make


@pytest.fixture(scope="module")
def run(make_run: MakeRun) -> Path:
    return make_run(1)


@pytest.fixture(scope="module")
def other(make_run: MakeRun) -> Path:
    return make_run(2)


def moved(state: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Every float tensor a little elsewhere, variances above 0; counts one higher."""
    generator = torch.Generator().manual_seed(seed)
    noise = {k: 0.05 * torch.rand(v.shape, generator=generator) for k, v in state.items() if v.is_floating_point()}
    return {name: value + noise.get(name, 1) for name, value in state.items()}


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


# -------------------------------------------------------------------------------------------- between start and end


@pytest.mark.slow
def test_alpha_0_is_the_start_1_the_run_and_between_lies_the_straight_line(run: Path, weights_2d: Path) -> None:
    state = torch.load(next(run.rglob("state.ckpt")), weights_only=True)
    cards = {name: DatasetCard.from_dict(card) for name, card in state["cards"].items()}
    fresh = Backbone(BackboneConfig(**state["backbone"]))
    fresh.setup_domains(cards)
    trained = Backbone(BackboneConfig(**state["backbone"]))
    trained.setup_domains(cards)
    backbone = {k.removeprefix("backbone."): v for k, v in state["state_dict"].items() if k.startswith("backbone.")}
    trained.load_state_dict(backbone)
    for alpha in (0.0, 0.25, 1.0):
        contents = run_contents(run, with_heads=False, alpha=alpha)
        parts = (contents.net.state_dict(), contents.extra_tensors)
        for found, one, two in zip(parts, *(_states(b) for b in (fresh, trained)), strict=True):
            assert found.keys() == one.keys() == two.keys()
            for name, value in found.items():
                if value.is_floating_point() and alpha in (0.0, 1.0):
                    assert torch.equal(value, (one, two)[int(alpha)][name]), name
                elif value.is_floating_point():
                    line = one[name].double() + alpha * (two[name].double() - one[name].double())
                    torch.testing.assert_close(value, line.float(), rtol=1e-6, atol=1e-7)
    assert any(name.startswith("norm_domains.clips.") for name in run_contents(run, with_heads=False).extra_tensors)
    x = torch.randn(1, 1, 8, 32, 32)
    with torch.no_grad():
        start = run_contents(run, with_heads=False, alpha=0).net.eval()
        torch.testing.assert_close(start(x), fresh.eval()(x, domain="shapes").pooled)


def _states(backbone: Backbone) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    net, extra = split_domains(backbone, "shapes")
    return net.state_dict(), extra


@pytest.mark.slow
def test_of_a_run_with_an_ema_the_average_is_the_end(make_run: MakeRun) -> None:
    folder = make_run(3, average=True)
    state = torch.load(next(folder.rglob("state.ckpt")), weights_only=True)
    start, half, end = (run_contents(folder, with_heads=False, alpha=a).net.state_dict() for a in (0, 0.5, 1))
    for name in ("layer1.0.conv1.weight", "layer1.0.bn1.weight"):
        assert torch.equal(end[name], state["ema"]["weights"][f"backbone.net.{name}"])
        torch.testing.assert_close(half[name], (start[name] + end[name]) / 2)


@pytest.mark.slow
def test_what_lies_between_says_so_and_loads_with_its_replay(run: Path, tmp_path: Path) -> None:
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert main(["publish", str(run), "--output", str(whole)]) == 0
    assert main(["publish", str(run), "--output", str(half), "--interpolate", "0.5"]) == 0
    publish_run(run, str(tmp_path / "one"), interpolate=1.0)
    assert (tmp_path / "one" / "SHA256SUMS").read_bytes() == (whole / "SHA256SUMS").read_bytes()
    net = inflate3d.create_model(f"local-dir:{half}", pretrained=True)
    assert torch.equal(net.state_dict()["conv1.0.weight"], tensors_of(half)["conv1.0.weight"])
    training = json.loads((half / "config.json").read_text())["training"]
    assert training["interpolation"] == {"alpha": 0.5, "start": "test_resnet"}
    assert (training["seed"], training["steps"], training["metrics"]) == (1, 7, {})
    card = (half / "README.md").read_text()
    assert "lies at 0.5 of the way from the run's start (test_resnet, 0) to the trained net (1, seed 1)" in card
    assert "val/score" not in card
    assert "How these weights came about" not in (whole / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--interpolate", "1.5"], "--interpolate is 1.5; it must be between 0"),
        (["--interpolate", "0.5", "--heads"], "heads read the trained weights"),
        (["--recalibrate", "shapes:test"], "unknown split 'test'; allowed are train, val"),
    ],
)
def test_what_cannot_be_published_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["publish", str(run), "--output", str(tmp_path / "w"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_without_its_start_there_is_nothing_half_way_to(make_run: MakeRun, run: Path, weights_2d: Path) -> None:
    scratch = make_run(4, pretrained=False, timm_kwargs={})
    with pytest.raises(InputError, match="began from random weights"):
        run_contents(scratch, with_heads=False, alpha=0.5)
    aside = weights_2d.rename(weights_2d.with_suffix(".aside"))
    try:
        with pytest.raises(
            InputError, match=r"the weights that .* began from: the 2D weights of .test_resnet. cannot be fetched"
        ):
            run_contents(run, with_heads=False, alpha=0.5)
    finally:
        aside.rename(weights_2d)


# ------------------------------------------------------------------------------------------------------- over several


def drawn(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"kernel": torch.randn(5, 3, 3, generator=generator), "var": torch.rand(7), "count": torch.tensor(seed)}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_average_of_one_is_itself_and_of_equals_is_equal() -> None:
    state = {**drawn(0), "odd": torch.tensor([-0.0, 1e-38, 3e38])}
    for count in (1, 2, 3, 7, 10):
        assert same(averaged_tensors([state] * count, shares_of(["x"] * count, None)), state)
    end = {**state, "count": torch.tensor(1)}
    assert same(averaged_tensors([{**state, **drawn(1)}, state], [0.0, 1.0]), end)


def test_the_average_is_the_formulas_whatever_the_order_and_the_grouping() -> None:
    members, shares = [drawn(seed) for seed in (3, 1, 2)], [0.25, 0.5, 0.25]
    whole = averaged_tensors(members, shares)
    turned = averaged_tensors(members[::-1], shares[::-1])
    pair = averaged_tensors(members[:2], shares_of(["a", "b"], [1, 2]))
    grouped = averaged_tensors([pair, members[2]], shares_of(["c", "d"], [3, 1]))
    assert whole["count"] == turned["count"] == grouped["count"] == 3
    for name in ("kernel", "var"):
        expected = np.average([m[name].double().numpy() for m in members], axis=0, weights=[1, 2, 1])
        for found in (whole, turned, grouped):
            np.testing.assert_allclose(found[name].numpy(), expected, rtol=3e-7, atol=1e-7)


@pytest.mark.slow
def test_unlike_members_are_refused_by_what_differs(make_run: MakeRun, run: Path) -> None:
    one, names = run_contents(run, with_heads=False), ("a", "b")
    check_alike(one, one, names=names)
    flat = run_contents(make_run(6, plan="2d"), with_heads=False)
    with pytest.raises(InputError, match=r"a and b differ in net\.plan\.\w+: .* and .*"):
        check_alike(one, flat, names=names)
    shared = run_contents(make_run(6, norm="shared"), with_heads=False)
    with pytest.raises(InputError, match="a and b differ in norm: 'per_domain' and 'shared'"):
        check_alike(one, shared, names=names)
    scratch = run_contents(make_run(6, pretrained=False, timm_kwargs={}), with_heads=False)
    with pytest.raises(InputError, match=r"a and b differ in source_weights: .*test_resnet.* and none"):
        check_alike(one, replace(scratch), names=names)
    with pytest.raises(InputError, match=r"--weights has 1 numbers for 2 members"):
        shares_of(names, [1.0])
    with pytest.raises(InputError, match=r"--weights: -1; each must be above 0"):
        shares_of(names, [2.0, -1.0])


@pytest.mark.slow
def test_a_soup_of_runs_and_publications_tells_its_members_data_and_licences(
    make_run: MakeRun, run: Path, other: Path, tmp_path: Path
) -> None:
    limited = make_run(8, clips=replace(CLIPS, licence="CC-BY-NC-4.0", commercial_use=False))
    half, pair, soup = tmp_path / "half", tmp_path / "pair", tmp_path / "soup"
    publish_run(other, str(half), interpolate=0.5)
    assert main(["soup", str(run), str(half), "--weights", "1", "2", "--output", str(pair)]) == 0
    assert "Commercial use of these weights: **yes**" in (pair / "README.md").read_text()
    assert main(["soup", f"local-dir:{pair}", str(limited), "--weights", "3", "1", "--output", str(soup)]) == 0
    config = json.loads((soup / "config.json").read_text())
    rows = [{k: v for k, v in row.items() if k != "name"} for row in config["training"]["soup"]]
    assert rows == [
        {"share": 0.25, "seed": 1, "steps": 7},
        {"share": 0.5, "seed": 2, "steps": 7, "alpha": 0.5},
        {"share": 0.25, "seed": 8, "steps": 7},
    ]
    assert config["training"]["soup"][1]["name"] == "half"
    card = (soup / "README.md").read_text()
    assert "the average of 3 nets" in card
    assert "| half | 0.5 | 2 | 7 | 0.5 |" in card
    assert "CC-BY-NC-4.0): commercial use not allowed" in card
    expected = sum(
        share * tensors.double()
        for share, tensors in (
            (0.25, run_contents(run, with_heads=False).net.state_dict()["layer1.0.conv1.weight"]),
            (0.5, tensors_of(half)["layer1.0.conv1.weight"]),
            (0.25, run_contents(limited, with_heads=False).net.state_dict()["layer1.0.conv1.weight"]),
        )
    )
    net = inflate3d.create_model(f"local-dir:{soup}", pretrained=True)
    torch.testing.assert_close(net.state_dict()["layer1.0.conv1.weight"], expected.float())  # type: ignore[union-attr]
    assert inflate3d.create_model(f"local-dir:{soup}", pretrained=True, norm_domain="clips") is not None


@pytest.mark.slow
def test_a_soup_of_one_publication_has_its_very_tensors_heads_too(run: Path, tmp_path: Path) -> None:
    publish_run(run, str(tmp_path / "w"), with_heads=True)
    publish_soup([str(tmp_path / "w")], str(tmp_path / "soup"), with_heads=True)
    for name in ("model.safetensors", "heads.safetensors", "replay.safetensors"):
        assert (tmp_path / "soup" / name).read_bytes() == (tmp_path / "w" / name).read_bytes()
    net = inflate3d.create_model(f"local-dir:{tmp_path / 'soup'}", pretrained=True, head="clips")
    assert net.label_names == ["jump", "run"]
    publish_soup([str(tmp_path / "w")], str(tmp_path / "bare"))
    bare = tensors_of(tmp_path / "bare")
    kept = {name: value for name, value in tensors_of(tmp_path / "w").items() if not name.startswith("fc.")}
    assert bare.keys() == kept.keys()
    assert all(torch.equal(bare[name], value) for name, value in kept.items())


@pytest.mark.slow
def test_a_soup_with_a_private_member_stays_on_this_machine(
    make_run: MakeRun, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = make_run(8, clips=replace(CLIPS, weights_may_be_published=False))
    assert main(["soup", str(run), str(secret), "--output", "hf-hub:lab/soup"]) == 2
    assert "forbids publishing weights" in capsys.readouterr().err
    assert publish_soup([str(run), str(secret)], str(tmp_path / "w")).is_private


# ------------------------------------------------------------------------------------------------ statistics anew


@pytest.mark.slow
def test_recalibration_gives_one_domain_the_statistics_of_its_data_and_leaves_the_rest(run: Path, shards: Path) -> None:
    before = run_contents(run, with_heads=False)
    after = recalibrated(before, [Recalibration.parse("shapes:val")], str(shards))
    net, means = before.net.eval(), []
    net.conv1[0].register_forward_hook(lambda _m, _i, out: means.append(out.transpose(0, 1).flatten(1).mean(1)))
    with torch.no_grad():
        for image in _images(Recalibration("shapes", "val"), dict(before.input_spec or {}), str(shards)):
            net(image)
    first = after.net.state_dict()["conv1.1.running_mean"]
    torch.testing.assert_close(first, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
    for name, value in before.net.state_dict().items():
        assert torch.equal(value, after.net.state_dict()[name]) != name.endswith(("running_mean", "running_var")), name
    assert all(torch.equal(value, after.extra_tensors[name]) for name, value in before.extra_tensors.items())
    assert after.training["recalibrated"] == {"shapes": {"split": "val", "samples": 48}}
    with pytest.raises(InputError, match="unknown domain 'shape'; close names: 'shapes'"):
        recalibrated(before, [Recalibration("shape")], str(shards))


@pytest.mark.slow
def test_another_domain_than_the_nets_own_is_recalibrated_with_its_own_stem(run: Path, shards: Path) -> None:
    own = run_contents(run, with_heads=False)
    moved_to = run_contents(run, domain="clips", with_heads=False)
    one = recalibrated(own, [Recalibration("shapes")], str(shards)).net.state_dict()
    two = recalibrated(moved_to, [Recalibration("shapes")], str(shards))
    for name, value in one.items():
        if name.endswith(("running_mean", "running_var")):
            assert torch.equal(value, two.extra_tensors[f"norm_domains.shapes.{name}"])
    kept = moved_to.net.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in two.net.state_dict().items())


@pytest.mark.slow
def test_a_command_recalibrates_what_it_publishes(run: Path, other: Path, shards: Path, tmp_path: Path) -> None:
    for command in (["publish", str(run)], ["soup", str(run), str(other), "--root", str(shards)]):
        place = tmp_path / command[0]
        assert main([*command, "--recalibrate", "shapes", "--output", str(place)]) == 0
        told = "The running statistics for shapes were computed again from 48 unlabelled samples of its train split"
        assert told in (place / "README.md").read_text()
        assert published_contents(place, with_heads=False).training["metrics"] == {}


@pytest.mark.slow
def test_what_a_group_norm_net_has_not_is_not_recalibrated(make_run: MakeRun, shards: Path) -> None:
    contents = run_contents(make_run(6, norm="group"), with_heads=False)
    with pytest.raises(InputError, match="no running statistics"):
        recalibrated(contents, [Recalibration("shapes")], str(shards))
