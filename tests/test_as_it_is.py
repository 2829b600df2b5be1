"""What publish writes is the net as it is now, or publishing is refused with the remedy."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inflate3d
import pytest
import timm
import torch
from inflate3d.errors import InputError
from inflate3d.publishing import publish
from inflate3d.publishing.as_it_is import twin_of, unwrapped
from nightly import slow_but
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

SIZES = {"test_resnet": 64, "test_vit": 160}


def changed(name: str, change: Callable[[Any], Any]) -> Any:
    torch.manual_seed(0)
    net = inflate3d.create_model(name).eval()
    change(net)
    return net


@pytest.mark.parametrize(
    ("name", "change"),
    slow_but(
        [
            ("test_resnet", lambda net: net.reset_classifier(7)),
            ("test_resnet", lambda net: net.reset_classifier(7, "max")),
            ("test_resnet", lambda net: net.reset_classifier(0, "avgmax")),
            ("test_resnet", lambda net: net.to(memory_format=torch.channels_last_3d)),
            ("test_vit", lambda net: net.reset_classifier(7)),
            ("test_vit", lambda net: net.set_input_size(img_size=96)),
            ("test_vit", lambda net: net.set_input_size(img_size=(96, 128))),
        ],
        3,
    ),
    ids=["classes", "maximum", "features", "memory", "tokens", "another size", "oblong"],
)
def test_a_changed_net_comes_back_as_it_was(tmp_path: Path, name: str, change: Callable[[Any], Any]) -> None:
    net = changed(name, change)
    size = getattr(getattr(net, "patch_embed", None), "img_size", None) or (SIZES[name], SIZES[name])
    x = torch.randn(2, 3, 5, *size)
    publish(net, f"local-dir:{tmp_path / 'p'}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = inflate3d.create_model(f"local-dir:{tmp_path / 'p'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(x), net(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            "test_resnet",
            lambda net: setattr(net, "fc", torch.nn.Linear(net.num_features, 7)),
            r"fc\.weight is \(7, 96\)",
        ),
        ("test_resnet", lambda net: setattr(net, "act1", torch.nn.GELU()), "with these weights differs by"),
        ("test_resnet", lambda net: net.bfloat16(), r"torch\.bfloat16; weights are published from float32"),
        ("test_resnet", lambda net: net.double(), r"torch\.float64; weights are published from float32"),
        ("test_vit", lambda net: net.reset_classifier(3, "avg"), r"norm\.weight is \(64,\)"),
    ],
    ids=["another layer", "another activation", "bfloat16", "double", "mean of tokens"],
)
def test_what_a_spec_cannot_say_is_refused_before_anything_is_written(
    tmp_path: Path, name: str, change: Callable[[Any], Any], said: str
) -> None:
    net = changed(name, change)
    with pytest.raises(InputError, match=said):
        publish(net, f"local-dir:{tmp_path / 'p'}")
    assert not (tmp_path / "p").exists()


def pruned(net: Any) -> None:
    prune.l1_unstructured(net.layer1[0].conv1, "weight", 0.5)


def frozen_norms(net: Any) -> None:
    timm.layers.freeze_batch_norm_2d(net)


def quantised(net: Any) -> Any:
    return torch.ao.quantization.quantize_dynamic(net, {torch.nn.Linear}, inplace=False)


def with_a_hook(net: Any) -> None:
    net.layer2.register_forward_hook(lambda module, args, output: 1.01 * output)


def with_other_eps(net: Any) -> None:
    net.bn1.eps = 1e-3


def not_a_number(net: Any) -> None:
    with torch.no_grad():
        net.fc.weight[3, 5] = float("nan")


@pytest.mark.parametrize(
    ("change", "said"),
    slow_but(
        [
            (pruned, r"layer1\.0\.conv1\.weight_orig is .*a net made by its spec has none of that name"),
            (lambda net: parametrizations.weight_norm(net.fc), r"fc\.parametrizations\.weight\.original0 is"),
            (frozen_norms, r"\.num_batches_tracked is absent"),
            (lambda net: setattr(net, "bn1", torch.nn.Identity()), r"bn1\.weight is absent"),
            (quantised, r"fc\..* is a .*before it is converted"),
            (with_a_hook, "differs by"),
            (with_other_eps, "differs by"),
            (not_a_number, r"fc\.weight holds numbers that are NaN or infinite"),
            (lambda net: net.to("meta"), "the net lies on meta"),
            (lambda net: setattr(net, "layer4", torch.nn.Identity()), r"layer4.* is absent"),
            (lambda net: setattr(net, "forward", lambda x: net.forward_features(x).mean((2, 3, 4))), "differs by inf"),
            (lambda net: net.fc.to(torch.complex64), r"fc\.weight is \(1000, 96\) torch\.complex64"),
            (lambda net: torch.nn.Sequential(net), "Sequential was not made by create_model"),
        ],
        5,
    ),
)
def test_a_net_that_was_converted_or_bent_is_refused(tmp_path: Path, change: Callable[[Any], Any], said: str) -> None:
    net = inflate3d.create_model("test_resnet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, on quantising and on complex numbers
        result = change(net)
    net = result if isinstance(result, torch.nn.Sequential) or change is quantised else net
    with pytest.raises(InputError, match=said):
        twin_of(unwrapped(net), norm="shared")


def test_features_only_nets_and_nets_under_a_head_name_what_to_publish() -> None:
    with pytest.raises(InputError, match="features_only nets lack their last layers"):
        twin_of(inflate3d.create_model("test_resnet", features_only=True), norm="shared")
    with pytest.raises(InputError, match=r"a Segmenter is published with its run .*model\.encoder"):
        twin_of(inflate3d.create_segmenter("test_resnet", num_classes=2), norm="shared")


@pytest.mark.parametrize(
    "change",
    slow_but(
        [
            lambda net: prune.remove(prune.l1_unstructured(net.layer1[0].conv1, "weight", 0.5), "weight"),
            lambda net: net.requires_grad_(False),
            lambda net: net.set_grad_checkpointing(True),
            lambda net: setattr(net.layer2[0].conv1, "weight", net.layer2[0].conv1.weight),
        ],
        2,
    ),
    ids=["pruned for good", "frozen", "checkpointed", "the same parameter"],
)
def test_a_net_that_answers_as_its_spec_says_has_a_twin_with_its_weights(change: Callable[[Any], Any]) -> None:
    net = changed("test_resnet", change)
    state = twin_of(net, norm="shared").state_dict()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.slow
def test_tied_weights_are_each_saved_in_full(tmp_path: Path) -> None:
    net = inflate3d.create_model("test_vit", num_classes=0)
    net.blocks[1].norm1.weight = net.blocks[0].norm1.weight
    publish(net, f"local-dir:{tmp_path / 'p'}")
    again = inflate3d.create_model(f"local-dir:{tmp_path / 'p'}", pretrained=True)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    "wrap", slow_but([torch.nn.DataParallel, AveragedModel, lambda net: torch.compile(net, backend="eager")], 1)
)
def test_what_torch_puts_around_a_net_is_taken_off(wrap: Callable[[Any], Any]) -> None:
    net = inflate3d.create_model("test_resnet", num_classes=2)
    state = twin_of(unwrapped(wrap(net)), norm="shared").state_dict()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_publishing_leaves_the_modes_and_threads_of_the_net_as_they_were() -> None:
    net = inflate3d.create_model("test_resnet", num_classes=2).train()
    net.layer1.eval()
    before = [module.training for module in net.modules()]
    twin_of(net, norm="shared")
    assert [module.training for module in net.modules()] == before


def test_names_of_classes_do_not_outlive_their_classifier() -> None:
    net = inflate3d.create_model("test_resnet", num_classes=2)
    net.label_names = ["cat", "dog"]
    net.reset_classifier(2)
    assert net.label_names == []


@pytest.mark.slow
def test_what_a_publication_was_trained_on_goes_along_when_its_net_is_published_again(tmp_path: Path) -> None:
    card = {"name": "scans", "licence": "own", "commercial_use": False, "weights_may_be_published": False}
    card |= {"title": "Scans", "url": "", "citation": "", "media": "volume"}
    contract = {"axes": "BCDHW", "channels": ["t1"], "spacing_mm": [2.0, 1.0, 1.0], "orientation": "RAS"}
    net = inflate3d.create_model("test_resnet", num_classes=0, in_chans=1)
    with pytest.warns(UserWarning, match="marked private"):
        publish(net, str(tmp_path / "first"), input_spec=contract, training={"data": [card]})
    again = inflate3d.create_model(f"local-dir:{tmp_path / 'first'}", pretrained=True)
    with pytest.warns(UserWarning, match="marked private"):
        publish(again, str(tmp_path / "second"))
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert config["private"] is True
    assert config["training"]["data"] == [card]
    assert {name: config["input"][name] for name in contract} == contract
    with pytest.raises(InputError, match="forbids publishing"):
        publish(again, "hf-hub:me/mine")


@pytest.mark.slow
def test_a_compiled_net_is_published_as_the_net(tmp_path: Path) -> None:
    net = changed("test_resnet", lambda net: None)
    publish(torch.compile(net, backend="eager"), f"local-dir:{tmp_path / 'p'}")
    again = inflate3d.create_model(f"local-dir:{tmp_path / 'p'}", pretrained=True)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())
