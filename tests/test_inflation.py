"""inflate(): exact on a static clip, a real 3D net on any other, and honest about what it cannot do."""

import copy
import pickle
from itertools import product

import pytest
import timm
import torch
import torch.nn.functional as F
from inflate3d import inflate
from inflate3d.errors import InputError
from inflate3d.inflation import InflationError
from nightly import slow_but, some
from torch import nn

CONV_NETS = ("resnet10t", "resnet18", "tf_efficientnet_lite0", "convnext_atto", "regnetx_002", "mobilenetv3_small_050")
OTHER_NETS = (
    "efficientvit_b0",
    "densenet121",
    "nf_resnet26",
    "resnetv2_50",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
)


def make_2d(name):
    torch.manual_seed(0)
    return timm.create_model(name).eval()


def check_static_clip(name, taps, plan, depth):
    net = make_2d(name)
    size = 224 if "224" in name else 96
    image = torch.randn(2, 3, size, size)
    inflated = inflate(net, example_size=(depth, size, size), inflation=taps, plan=plan).eval()
    with torch.no_grad():
        expected, got = net(image), inflated(image.unsqueeze(2).expand(-1, -1, depth, -1, -1))
    assert ((got - expected).abs().max() / expected.abs().max()).item() < 1e-4


@pytest.mark.parametrize("taps", slow_but(["mean", "overshoot", "center"], 2))
@pytest.mark.parametrize("name", slow_but(CONV_NETS, 2))
def test_a_static_clip_answers_as_the_2d_net(name, taps):
    check_static_clip(name, taps, "isotropic", depth=5)


@pytest.mark.parametrize("plan", slow_but(["i3d", "slow", "2d", "auto"], 1))
def test_every_plan_is_exact_on_a_static_clip(plan):
    check_static_clip("resnet18", "mean", plan, depth=11)


TAPS, PLANS = ("mean", "center", "overshoot"), ("isotropic", "i3d", "slow")


@pytest.mark.slow
@pytest.mark.parametrize(("taps", "plan"), some(product(TAPS, PLANS), zip(TAPS, PLANS, strict=True)))
@pytest.mark.parametrize("name", OTHER_NETS)
def test_other_families_are_exact_on_a_static_clip(name, taps, plan):
    check_static_clip(name, taps, plan, depth=9)


class PlainResNet3D(nn.Module):
    """An independent 3D ResNet-18 over timm's state_dict: nn.functional only, time padded as it is told."""

    def __init__(self, state, time_padding):
        super().__init__()
        self.state, self.zeros = state, time_padding == "zeros"

    def conv(self, x, name, stride, space_padding):
        weight = self.state[f"{name}.weight"]
        if weight.ndim == 4:  # a 1x1 convolution without time
            weight = weight.unsqueeze(2)
        if self.zeros:
            return F.conv3d(x, weight, None, stride, (weight.shape[2] // 2, space_padding, space_padding))
        before = (weight.shape[2] - 1) // 2
        after = max((-(-x.shape[2] // stride) - 1) * stride + weight.shape[2] - x.shape[2] - before, 0)
        x = F.pad(x, (0, 0, 0, 0, before, after), mode="replicate")
        return F.conv3d(x, weight, None, stride, (0, space_padding, space_padding))

    def norm(self, x, name):
        s = self.state
        stats = (s[f"{name}.running_mean"], s[f"{name}.running_var"])
        return F.batch_norm(x, *stats, s[f"{name}.weight"], s[f"{name}.bias"], eps=1e-5)

    def block(self, x, name, stride):
        y = F.relu(self.norm(self.conv(x, f"{name}.conv1", stride, 1), f"{name}.bn1"))
        y = self.norm(self.conv(y, f"{name}.conv2", 1, 1), f"{name}.bn2")
        if f"{name}.downsample.0.weight" in self.state:
            x = self.norm(self.conv(x, f"{name}.downsample.0", stride, 0), f"{name}.downsample.1")
        return F.relu(x + y)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x, "conv1", 2, 3), "bn1"))
        odd = (-(-x.shape[2] // 2) - 1) * 2 + 3 - x.shape[2] - 1
        if self.zeros:
            x = F.max_pool3d(x, 3, 2, 1)
        else:
            x = F.max_pool3d(F.pad(x, (0, 0, 0, 0, 1, max(odd, 0)), mode="replicate"), 3, 2, (0, 1, 1))
        for stage in range(1, 5):
            for block in range(2):
                x = self.block(x, f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1)
        return F.linear(x.mean((2, 3, 4)), self.state["fc.weight"], self.state["fc.bias"])


@pytest.mark.parametrize("time_padding", slow_but(["replicate", "zeros"], 1))
@pytest.mark.parametrize("depth", slow_but([5, 19, 16], 1))
def test_an_inflated_resnet18_equals_an_independent_conv3d_resnet_on_a_random_clip(depth, time_padding):
    net = make_2d("resnet18").double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    options = dict(inflation="random", plan="isotropic", time_padding=time_padding)
    inflated = inflate(net, example_size=(16, 64, 64), **options).eval()
    x = torch.randn(2, 3, depth, 64, 80, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            inflated(x), PlainResNet3D(inflated.state_dict(), time_padding)(x), rtol=1e-9, atol=1e-9
        )


def test_the_order_of_frames_matters_once_taps_differ():
    inflated = inflate(make_2d("resnet10t"), example_size=(8, 64, 64), inflation="random", plan="isotropic").eval()
    x = torch.randn(1, 3, 8, 64, 64)
    with torch.no_grad():
        assert (inflated(x) - inflated(x.flip(2))).abs().max() > 1e-5


def test_keys_and_the_2d_net_stay_as_they_were():
    net = make_2d("resnet10t")
    before = copy.deepcopy(net.state_dict())
    inflated = inflate(net, example_size=(8, 64, 64), plan="isotropic")
    assert list(inflated.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert inflated.state_dict()["conv1.3.weight"].ndim == 5


@pytest.mark.slow
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_answer_alike_and_share_nothing(copier):
    net = inflate(make_2d("resnet10t"), example_size=(8, 64, 64)).eval()
    twin = copier(net)
    x = torch.randn(2, 3, 8, 64, 64)
    with torch.no_grad():
        assert torch.equal(net(x), twin(x))
        assert torch.equal(net(x[:1]), twin(x)[:1].clone()) or torch.allclose(net(x[:1]), twin(x)[:1], atol=1e-6)
    assert not {id(p) for p in net.parameters()} & {id(p) for p in twin.parameters()}
    assert type(twin) is type(net)


def test_levels_tell_their_reduction_along_each_axis():
    net = inflate(make_2d("resnet18"), example_size=(16, 64, 64), plan="i3d")
    assert net.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert net.feature_info.reduction_dhw() == [(2, 2, 2), (2, 4, 4), (2, 8, 8), (4, 16, 16), (8, 32, 32)]
    maps = net.forward_intermediates(torch.randn(1, 3, 16, 64, 96), intermediates_only=True)
    assert [tuple(m.shape[2:]) for m in maps] == [(8, 32, 48), (8, 16, 24), (8, 8, 12), (4, 4, 6), (2, 2, 3)]


def test_global_max_pooling_reaches_over_time():
    net_2d = timm.create_model("resnet10t", global_pool="max", num_classes=0).eval()
    net = inflate(net_2d, example_size=(4, 64, 64), plan="2d")
    x = torch.randn(1, 3, 4, 64, 64)
    with torch.no_grad():
        assert torch.allclose(net(x), net.forward_features(x).amax((2, 3, 4)), atol=1e-6)


class ToyOddConv(nn.Conv2d):
    """A convolution with arithmetic of its own."""

    def forward(self, x):
        return super().forward(x) * 2


def test_an_unknown_convolution_is_named():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), ToyOddConv(4, 4, 3, 1, 1))
    with pytest.raises(InflationError, match="layer '1' is a ToyOddConv"):
        inflate(net, example_size=(4, 32, 32))


class ToyFrameMixer(nn.Module):
    """Subtracts the mean over the batch, as no layer on folded frames may."""

    def forward(self, x):
        return x - x[:1] if x.shape[0] > 1 else x


def test_a_layer_that_breaks_the_invariant_is_named():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), ToyFrameMixer(), nn.Conv2d(4, 4, 3, 1, 1))
    with pytest.raises(InflationError, match="layer '1' \\(ToyFrameMixer\\) breaks the static-clip invariant"):
        inflate(net, example_size=(4, 32, 32))


def test_a_clip_shorter_than_the_plan_needs_is_refused():
    net = inflate(make_2d("resnet10t"), example_size=(16, 64, 64), plan="i3d")
    with pytest.raises(InputError, match=r"input has 8 frames .* plan 'i3d' needs at least 9"):
        net(torch.zeros(1, 3, 8, 64, 64))


def test_wrong_axes_and_channels_are_refused():
    net = inflate(make_2d("resnet10t"), example_size=(16, 64, 64))
    with pytest.raises(InputError, match="expected 5 axes"):
        net(torch.zeros(1, 3, 64, 64))
    with pytest.raises(InputError, match=r"1 channels .* the net takes 3: build it with in_chans=1"):
        net(torch.zeros(1, 1, 8, 64, 64))
