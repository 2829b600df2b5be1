"""A published directory: what goes in comes out, and nothing that was changed gets in."""

import json
import shutil
from pathlib import Path

import inflate3d
import pytest
import torch
from inflate3d.contracts import DatasetCard, InputSpec
from inflate3d.errors import InputError
from inflate3d.models import Backbone, BackboneConfig
from inflate3d.models.publication.schema import read_published_config
from inflate3d.publishing.from_run import split_domains
from inflate3d.publishing.licences import commercial_use


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    torch.manual_seed(0)
    net = inflate3d.create_model("resnet10t", num_classes=0, in_chans=1, inflation="mean", plan="slow").eval()
    folder = inflate3d.publish(net, f"local-dir:{tmp_path_factory.mktemp('out') / 'weights'}")
    return net, folder


@pytest.fixture
def copy(published, tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(published[1], folder)
    return folder


def load(folder, **kwargs):
    return inflate3d.create_model(f"local-dir:{folder}", pretrained=True, **kwargs)


def test_what_was_published_loads_and_answers_alike(published):
    net, folder = published
    x = torch.randn(2, 1, 5, 48, 64)
    with torch.no_grad():
        assert torch.equal(load(folder).eval()(x), net(x))


@pytest.mark.slow
def test_features_and_classifiers_load_from_the_same_directory(published):
    net, folder = published
    x = torch.randn(1, 1, 5, 64, 64)
    with torch.no_grad():
        maps = load(folder, features_only=True).eval()(x)
        for got, expected in zip(maps, net.forward_intermediates(x, intermediates_only=True), strict=True):
            torch.testing.assert_close(got, expected)
        assert load(folder, num_classes=4).eval()(x).shape == (1, 4)
        assert load(folder, in_chans=3).eval()(x.expand(-1, 3, -1, -1, -1)).shape == (1, 512)
        segmenter = inflate3d.create_segmenter(f"local-dir:{folder}", pretrained=True, num_classes=2).eval()
        assert segmenter(x).shape == (1, 2, 5, 64, 64)


def test_the_directory_is_what_the_design_says(published):
    names = {p.name for p in published[1].iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md", "conv1.png", "replay.safetensors", "SHA256SUMS"}
    config = json.loads((published[1] / "config.json").read_text())
    assert config["format"] == "inflate3d-weights/2"
    assert config["net"]["plan"]["name"] == "slow"
    assert "create_model" in (published[1] / "README.md").read_text()
    assert all(p.stat().st_mode & 0o044 for p in published[1].iterdir())


@pytest.mark.slow
def test_publishing_again_changes_nothing_and_a_newer_net_replaces_it(published, copy):
    net, _ = published
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in copy.iterdir()}
    inflate3d.publish(net, str(copy))
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in copy.iterdir()} == before
    inflate3d.publish(inflate3d.create_model("resnet10t", num_classes=0), str(copy))
    assert json.loads((copy / "config.json").read_text())["net"]["in_chans"] == 3
    assert [p.name for p in copy.parent.iterdir()] == ["weights"]


def test_the_replay_is_reckoned_in_one_thread_and_then_there_are_as_many_as_before(tmp_path):
    net, before, seen = inflate3d.create_model("test_resnet", num_classes=0), torch.get_num_threads(), set()
    handle = net.conv1.register_forward_hook(lambda *_: seen.add(torch.get_num_threads()))
    try:
        torch.set_num_threads(3)
        inflate3d.publish(net, str(tmp_path / "w"))
        assert (seen, torch.get_num_threads()) == ({1}, 3)
    finally:
        torch.set_num_threads(before)
        handle.remove()


def test_a_folder_that_holds_something_else_is_refused(published, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"holds something else \(thesis.tex"):
        inflate3d.publish(published[0], str(tmp_path))
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "replay.safetensors", "README.md"])
def test_a_flipped_bit_is_refused(copy, file):
    data = bytearray((copy / file).read_bytes())
    data[-2] ^= 1
    (copy / file).write_bytes(data)
    with pytest.raises(InputError, match=file):
        load(copy)


def test_missing_files_other_formats_and_hostile_names_are_refused(copy):
    sums = (copy / "SHA256SUMS").read_text()
    (copy / "SHA256SUMS").write_text(sums + "0" * 64 + "  ../../etc/passwd\n")
    with pytest.raises(InputError, match="does not name a file of the directory"):
        load(copy)
    (copy / "SHA256SUMS").unlink()
    with pytest.raises(InputError, match="SHA256SUMS is missing"):
        load(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "format": "inflate3d-weights/9"}))
    with pytest.raises(InputError, match="this version reads 'inflate3d-weights/2'"):
        load(copy)


@pytest.mark.slow
def test_another_plan_adapts_kernels_and_strides_and_says_so(published, caplog):
    net, folder = published
    x = torch.randn(1, 1, 8, 64, 64)
    with torch.no_grad():
        longer = load(folder, plan={"kernels": [5], "strides": [1]}).eval()
        torch.testing.assert_close(longer(x), net(x))  # zeros around the center change no answer
        assert "kernels of 1 slices along D became 5 (no answer changes)" in caplog.text
        assert "kernels of 3 slices along D became 5" in caplog.text
        still = x[:, :, :1].expand(-1, -1, 8, -1, -1)
        torch.testing.assert_close(load(folder, plan="2d").eval()(still), net(still), rtol=1e-4, atol=1e-5)
        assert "exact on static clips" in caplog.text
        strided = load(folder, plan={"kernels": [1, 1, 1, 1, None, None], "strides": [1, 2, 1, 1, 1, 1]})
        assert strided.eval().forward_features(x).shape[2] == 4
    assert "strides along D are 1 2 1 1 1 1, the weights were trained with 1 1 1 1 1 1" in caplog.text


@pytest.mark.parametrize(
    ("argument", "value", "own"),
    [
        ("inflation", "random", "'mean'"),
        ("overshoot", 0.5, "0.25"),
        ("attention", "joint", "'frame'"),
        ("statistics", "frame", "'clip'"),
        ("spacing_mm", (3, 1, 1), "None"),
    ],
)
def test_inflation_that_is_not_the_weights_own_is_refused(published, argument, value, own):
    with pytest.raises(InputError, match=rf"{argument} is .* carry their own: {own}\. Leave .*pretrained=False"):
        load(published[1], **{argument: value})


def test_what_the_weights_carry_may_be_said_and_random_weights_take_another(published):
    assert load(published[1], inflation="mean", overshoot=0.25).net_spec.inflation.taps.name == "mean"
    with pytest.warns(UserWarning, match="weights are random"):
        net = inflate3d.create_model(
            f"local-dir:{published[1]}", inflation="overshoot", statistics="frame", spacing_mm=(9, 1, 1)
        )
    taken = net.net_spec.inflation
    assert (taken.taps.name, taken.statistics, taken.plan.name, net.plan.name) == ("overshoot", "frame", "auto", "auto")
    assert net.input_spec["inflation"]["taps"] == "overshoot"


@pytest.mark.slow
def test_fewer_slices_than_the_plan_strides_take_fewer_strides(tmp_path, caplog):
    folder = inflate3d.publish(inflate3d.create_model("test_resnet", num_classes=0), str(tmp_path / "w"))
    short = load(folder, input_size=(4, 64, 64)).eval()
    assert short.plan.total_stride == 4
    assert short.forward_features(torch.zeros(1, 3, 4, 64, 64)).shape[2] == 1
    assert "the weights were trained with" in caplog.text
    assert load(folder, input_size=(64, 64, 64)).plan == inflate3d.create_model("test_resnet").plan


def test_other_channels_adapt_the_first_convolution_and_say_so(published, caplog):
    net, folder = published
    grey = torch.randn(1, 1, 4, 64, 64)
    with torch.no_grad():
        three = load(folder, in_chans=3).eval()
        torch.testing.assert_close(three(grey.expand(-1, 3, -1, -1, -1)), net(grey), rtol=1e-4, atol=1e-4)
    assert "first convolution taken from 1 to 3 channels" in caplog.text


def test_a_replay_outside_the_tolerance_warns_with_both_values(published, copy):
    from inflate3d.files import file_sha256
    from inflate3d.models.publication.tensor_file import read_tensors
    from safetensors.torch import save_file

    stored = read_tensors(copy / "replay.safetensors")
    save_file({**stored, "features": stored["features"] * 1.01}, copy / "replay.safetensors")
    sums = {line.split("  ")[1]: copy for line in (copy / "SHA256SUMS").read_text().splitlines()}
    (copy / "SHA256SUMS").write_text("".join(f"{file_sha256(copy / name)}  {name}\n" for name in sums))
    with pytest.warns(UserWarning, match=r"replay differs by 0\.0\d+ .*got \[.*stored \["):
        load(copy)


@pytest.mark.slow
def test_publishing_again_mends_a_file_that_has_changed(tmp_path):
    net = inflate3d.create_model("test_resnet", num_classes=0)
    folder = inflate3d.publish(net, str(tmp_path / "w"))
    card, stamp = (folder / "README.md").read_bytes(), folder.stat().st_ino
    inflate3d.publish(net, str(folder))
    assert folder.stat().st_ino == stamp, "the same content is left as it is"
    (folder / "README.md").write_bytes(card + b"more")
    inflate3d.publish(net, str(folder))
    assert (folder / "README.md").read_bytes() == card


def test_without_pretrained_a_published_name_warns_that_it_is_random(published):
    with pytest.warns(UserWarning, match="weights are random"):
        inflate3d.create_model(f"local-dir:{published[1]}")


def card(name, modality, channels, **changes):
    values = {
        "name": name,
        "media": "volume",
        "title": name,
        "modality": modality,
        "url": "",
        "licence": "CC-BY-4.0",
        "commercial_use": True,
        "weights_may_be_published": True,
        "citation": "",
        "input": InputSpec(channels=tuple(f"c{i}" for i in range(channels))),
    }
    return DatasetCard(**{**values, **changes})


def test_the_card_names_data_once_that_were_read_through_two_stems(tmp_path):
    data = [card("scenes", modality, 1, url="http://scenes").to_dict() for modality in ("mri", "ct")]
    net = inflate3d.create_model("test_resnet", num_classes=0)
    folder = Path(inflate3d.publish(net, str(tmp_path / "w"), training={"data": data}))
    assert (folder / "README.md").read_text().count("| scenes | CC-BY-4.0 | yes | http://scenes |") == 1
    assert [entry["modality"] for entry in read_published_config(folder)["training"]["data"]] == ["mri", "ct"]


@pytest.mark.slow
def test_the_statistics_and_stem_of_each_domain_go_along(tmp_path):
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig("resnet10t", stems={"rgb": 3, "mri": 1}))
    backbone.setup_domains({"brain": card("brain", "mri", 1), "clips": card("clips", "rgb", 3)})
    backbone.train()
    backbone(torch.randn(2, 1, 8, 32, 32) + 3, domain="brain")
    backbone(torch.randn(2, 3, 8, 32, 32) - 3, domain="clips")
    backbone.eval()
    net, extra = split_domains(backbone, "brain")
    folder = inflate3d.publish(
        net, str(tmp_path / "w"), norm="per_domain", norm_domains={"brain": "mri", "clips": "rgb"}, extra_tensors=extra
    )
    grey, colour = torch.randn(1, 1, 8, 32, 32), torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(load(folder).eval()(grey), backbone(grey, domain="brain").pooled)
        clips = load(folder, norm_domain="clips", in_chans=3).eval()
        torch.testing.assert_close(clips(colour), backbone(colour, domain="clips").pooled)
    assert (clips.input_spec["domain"], clips.input_spec["intensity"]) == ("clips", None)  # nobody stated it
    with pytest.raises(InputError, match="no input contract"):
        inflate3d.create_transform(clips)
    with pytest.raises(InputError, match="unknown norm_domain 'clip'; close names: 'clips'"):
        load(folder, norm_domain="clip")


@pytest.mark.parametrize("stems", [None, {"mri": 1, "rgb": 3, "ct": 1}])
@pytest.mark.parametrize("norm", ["per_domain", "shared"])
def test_a_run_begins_with_the_domain_that_is_like_its_dataset(norm, stems, tmp_path):
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig("test_resnet", stems={"rgb": 3, "mri": 1}))
    backbone.setup_domains({"clips": card("clips", "rgb", 3), "brain": card("brain", "mri", 1)})
    with torch.no_grad():
        backbone.stem_switch["mri"].weight.add_(1.0)
    backbone.train()
    backbone(torch.randn(2, 1, 8, 32, 32) + 3, domain="brain")
    backbone(torch.randn(2, 3, 8, 32, 32) - 3, domain="clips")
    net, extra = split_domains(backbone.eval(), "clips")
    domains = {"clips": "rgb", "brain": "mri"}
    folder = inflate3d.publish(net, str(tmp_path / "w"), norm="per_domain", norm_domains=domains, extra_tensors=extra)

    def begun(*cards):
        fresh = Backbone(BackboneConfig(f"local-dir:{folder}", True, norm=norm, stems=stems))
        fresh.setup_domains({c.name: c for c in cards})
        return fresh.eval()

    grey, colour = torch.randn(1, 1, 8, 32, 32), torch.randn(1, 3, 8, 32, 32)
    knee, film = card("knee", "mri", 1), card("film", "rgb", 3)
    with torch.no_grad():
        brain, clips = (backbone(x, domain=d).pooled for x, d in ((grey, "brain"), (colour, "clips")))
        torch.testing.assert_close(begun(knee)(grey, domain="knee").pooled, brain)
        torch.testing.assert_close(begun(film)(colour, domain="film").pooled, clips)
        if norm == "per_domain" and stems is not None:
            both = begun(film, knee)
            torch.testing.assert_close(both(grey, domain="knee").pooled, brain)
            torch.testing.assert_close(both(colour, domain="film").pooled, clips)
        told = BackboneConfig(f"local-dir:{folder}", True, norm=norm, timm_kwargs={"norm_domain": "clips"})
        led = Backbone(told)
        led.setup_domains({"knee": knee})
        torch.testing.assert_close(led.eval()(colour, domain="knee").pooled, clips)
        alone = begun(card("chest", "ct", 1))  # nothing is like it: the net's own
        if stems is not None:
            summed = backbone.stem_switch["rgb"].weight.sum(1, keepdim=True)
            torch.testing.assert_close(alone.stem_switch["ct"].weight, summed)


def test_weights_from_data_that_forbids_it_are_marked_private(published, tmp_path):
    data = [card("arid", "rgb", 3, weights_may_be_published=False, commercial_use=None).to_dict()]
    with pytest.warns(UserWarning, match="marked private"):
        folder = inflate3d.publish(published[0], str(tmp_path / "w"), training={"data": data})
    assert (folder / "PRIVATE").exists()
    assert "**Private.**" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("uses", "licence", "allowed"),
    [
        ([True, True], "apache-2.0", True),
        ([True, False], "apache-2.0", False),
        ([True, None], "apache-2.0", False),
        ([True], "cc-by-nc-4.0", False),
        ([True], None, False),
    ],
)
def test_the_most_restrictive_licence_wins_and_unknown_means_no(uses, licence, allowed):
    cards = [card(f"d{i}", "mri", 1, commercial_use=use).to_dict() for i, use in enumerate(uses)]
    assert commercial_use(cards, licence, has_source=True)[0] is allowed
