"""Zeros past a clip's ends: every kind of layer equals torch's own 3D one, on random clips."""

import copy

import inflate3d
import pytest
import timm
import torch
from torch import nn


class ToyLayer(nn.Module):
    """A stem, which takes two frames together where time is strided, and one layer more."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def inflated(layer, **options):
    torch.manual_seed(0)
    value = dict(inflation="random", plan={"kernels": [3], "strides": [1, 2]}, time_padding="zeros")
    net = inflate3d.inflate(
        ToyLayer(layer).double().eval(), example_size=(8, 32, 32), **{**value, **options}, in_chans=4
    )
    return net, torch.randn(2, 4, 7, 32, 32, dtype=torch.float64)


@pytest.mark.parametrize(
    ("groups", "stride", "padding"), [(1, 1, 1), (1, 2, 1), (4, 1, 1), (2, 2, 1), (1, 1, "same"), (1, 1, "valid")]
)
def test_a_convolution_equals_conv3d(groups, stride, padding):
    net, x = inflated(nn.Sequential(nn.Conv2d(4, 8, 3, stride, padding, groups=groups)))
    own = net.layer[0]
    assert own.weight.shape[2] == 3
    conv3d = nn.Conv3d(
        4, 8, 3, stride, (1, *(2 * [{"same": 1, "valid": 0}.get(padding, padding)])), groups=groups
    ).double()
    conv3d.load_state_dict(own.state_dict())
    answer = conv3d(x)
    torch.testing.assert_close(net(x), answer, rtol=1e-12, atol=1e-12)
    x.requires_grad_()
    grads = [torch.autograd.grad(n(x).square().sum(), [x, c.weight]) for n, c in ((net, own), (conv3d, conv3d))]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("pool_2d", "pool_3d"),
    [
        (nn.MaxPool2d(3, 2, 1), nn.MaxPool3d(3, 2, 1)),
        (nn.MaxPool2d(3, 1, 1), nn.MaxPool3d(3, 1, 1)),
        (nn.AvgPool2d(3, 2, 1), nn.AvgPool3d(3, 2, 1)),
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AvgPool3d(3, 2, 1, count_include_pad=False)),
        (
            nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
            nn.AvgPool3d(2, 2, ceil_mode=True, count_include_pad=False),
        ),
    ],
)
def test_a_pool_equals_torchs_own(pool_2d, pool_3d):
    net, x = inflated(nn.Sequential(nn.Conv2d(4, 4, 1), pool_2d), inflation="center")
    first = torch.einsum("oihw,bidyx->bodyx", net.layer[0].weight, x) + net.layer[0].bias.view(-1, 1, 1, 1)
    torch.testing.assert_close(net(x), pool_3d(first), rtol=1e-12, atol=1e-12)


def test_a_linear_layer_equals_a_convolution_over_time():
    torch.manual_seed(0)
    options = dict(inflation="random", plan="slow", num_classes=0)
    net = inflate3d.create_model("test_vit", time_padding="zeros", **options).eval()
    name, layer = next((n, m) for n, m in net.named_modules() if type(m).__name__.startswith("ZeroPaddedFoldedLinear"))
    seen = {}
    layer.register_forward_hook(lambda _m, x, y: seen.update(x=x[0], y=y))
    with torch.no_grad():
        net(torch.randn(1, 3, 5, 160, 160))
    x_LCD, y_LCD = (seen[key].permute(1, 2, 0) for key in ("x", "y"))
    with torch.no_grad():
        expected = nn.functional.conv1d(x_LCD, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(y_LCD, expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_ends_alone_differ_from_repeated_frames():
    net_2d = timm.create_model("resnet10t").eval()
    options = dict(example_size=(9, 64, 64), inflation="mean", plan={"kernels": [3], "strides": [1]})
    x = torch.randn(1, 3, 1, 64, 64).expand(-1, -1, 33, -1, -1)
    with torch.no_grad():
        repeated, zeros = (
            inflate3d.inflate(net_2d, time_padding=padding, **options).eval().forward_features(x)
            for padding in ("replicate", "zeros")
        )
    torch.testing.assert_close(zeros[:, :, 16], repeated[:, :, 16], rtol=1e-4, atol=1e-5)
    assert (zeros[:, :, 0] - repeated[:, :, 0]).abs().max() > 0.01


@pytest.mark.slow
def test_copies_published_weights_and_float16_keep_them(tmp_path):
    net = inflate3d.create_model("test_resnet", num_classes=0, inflation="mean", time_padding="zeros").eval()
    loaded = inflate3d.create_model(
        str(f"local-dir:{inflate3d.publish(net, str(tmp_path / 'w'))}"), pretrained=True
    ).eval()
    x = torch.randn(1, 3, 6, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(net)(x), net(x))
        torch.testing.assert_close(loaded(x), net(x))
    assert loaded.net_spec.inflation == net.net_spec.inflation
    assert "time padding zeros" in str(loaded.net_spec.inflation)


@pytest.mark.parametrize("frames", [6, 7])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (7, 2), (2, 2)])
def test_same_shares_the_zeros_as_tensorflow_does(kernel, stride, frames):
    plan = {"strides": [1, stride], "layers": {"layer.0": [kernel, stride]}}
    net, _ = inflated(nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1)), plan=plan, time_padding="same")
    x = torch.randn(2, 4, frames, 32, 32, dtype=torch.float64)
    missing = max((-(-frames // stride) - 1) * stride + kernel - frames, 0)
    padded = nn.functional.pad(x, (1, 1, 1, 1, missing // 2, missing - missing // 2))
    own = net.layer[0]
    expected = nn.functional.conv3d(padded, own.weight, own.bias, (stride, 2, 2))
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-12)


def test_a_layer_of_its_own_reaches_and_strides_where_its_level_does_not():
    """A 1x1 convolution, and a pool of one pixel, as SlowFast's and I3D's ResNets have them."""
    layers = nn.Sequential(nn.Conv2d(4, 6, 1), nn.MaxPool2d(1))
    plan = {"kernels": [1], "strides": [1], "layers": {"layer.0": [3, 1], "layer.1": [2, 2]}}
    net, x = inflated(layers, plan=plan)
    own = net.layer[0]
    assert own.weight.shape == (6, 4, 3, 1, 1)
    between = nn.functional.conv3d(x, own.weight, own.bias, padding=(1, 0, 0))
    expected = nn.functional.max_pool3d(between[:, :, :6], (2, 1, 1))
    found = net(x)
    torch.testing.assert_close(found[:, :, :3], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[:, :, 3], between[:, :, 6], rtol=1e-12, atol=1e-12)  # the odd frame is kept
