"""What publish writes is the net as it is now, or publishing is refused with the remedy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inflate3d
import pytest
import torch
from inflate3d.errors import InputError
from inflate3d.publishing import publish

SIZES = {"test_resnet": 64, "test_vit": 160}


def changed(name: str, change: Callable[[Any], Any]) -> Any:
    torch.manual_seed(0)
    net = inflate3d.create_model(name).eval()
    change(net)
    return net


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("test_resnet", lambda net: net.reset_classifier(7)),
        ("test_resnet", lambda net: net.reset_classifier(7, "max")),
        ("test_resnet", lambda net: net.reset_classifier(0, "avgmax")),
        ("test_resnet", lambda net: net.to(memory_format=torch.channels_last_3d)),
        ("test_vit", lambda net: net.reset_classifier(7)),
    ],
    ids=["classes", "maximum", "features", "memory", "tokens"],
)
def test_a_changed_net_comes_back_as_it_was(tmp_path: Path, name: str, change: Callable[[Any], Any]) -> None:
    net = changed(name, change)
    x = torch.randn(2, 3, 5, SIZES[name], SIZES[name])
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
        ("test_vit", lambda net: net.set_input_size(img_size=96), r"pos_embed is \(1, 37, 64\)"),
        ("test_vit", lambda net: net.reset_classifier(3, "avg"), r"norm\.weight is \(64,\)"),
    ],
    ids=["another layer", "another activation", "bfloat16", "double", "another size", "mean of tokens"],
)
def test_what_a_spec_cannot_say_is_refused_before_anything_is_written(
    tmp_path: Path, name: str, change: Callable[[Any], Any], said: str
) -> None:
    net = changed(name, change)
    with pytest.raises(InputError, match=said):
        publish(net, f"local-dir:{tmp_path / 'p'}")
    assert not (tmp_path / "p").exists()


def test_a_compiled_net_is_published_as_the_net(tmp_path: Path) -> None:
    net = changed("test_resnet", lambda net: None)
    publish(torch.compile(net, backend="eager"), f"local-dir:{tmp_path / 'p'}")
    again = inflate3d.create_model(f"local-dir:{tmp_path / 'p'}", pretrained=True)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())
