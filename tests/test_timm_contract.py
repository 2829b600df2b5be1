"""timm's contract in 3D: what timm's own test suite expects of a 2D net, asked of inflated ones."""

import copy
import math

import inflate3d
import pytest
import timm
import torch
from nightly import slow_but
from timm.layers import Format
from timm.models import FeatureInfo, get_pretrained_cfg

NAMES = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_byobnet", "test_mambaout")
DEPTH = 9
SAVED = {}


@pytest.fixture(params=slow_but(NAMES, 3))
def name(request):
    return request.param


@pytest.fixture
def net(name):
    """A copy of the inflated net; plan i3d, so that D shrinks by less than H and W do."""
    if name not in SAVED:
        SAVED[name] = inflate3d.create_model(name, plan="i3d", num_classes=5).eval()
    return copy.deepcopy(SAVED[name])


@pytest.fixture
def clips(net):
    return torch.randn(2, 3, DEPTH, *net.trace_size, generator=torch.Generator().manual_seed(0))


def is_channels_last(net):
    return getattr(net, "output_fmt", Format.NCHW) in (Format.NHWC, "NHWC")


def channels_of(net, features):
    return features.shape[1] if features.ndim == 5 and not is_channels_last(net) else features.shape[-1]


@torch.no_grad()
def test_features_head_and_forward_are_one_way_to_the_answer(net, clips):
    features = net.forward_features(clips)
    assert channels_of(net, features) == net.num_features
    pooled = net.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, net.head_hidden_size)
    logits = net.forward_head(features)
    assert logits.shape == (2, 5)
    torch.testing.assert_close(logits, net(clips))
    torch.testing.assert_close(logits, net.get_classifier()(pooled))


@torch.no_grad()
def test_without_a_classifier_it_pools_and_without_pooling_it_gives_its_features(name, net, clips):
    features = net.forward_features(clips)
    pooled = net.forward_head(features, pre_logits=True)
    net.reset_classifier(0)
    torch.testing.assert_close(net(clips), pooled)
    assert net.num_classes == 0
    net.reset_classifier(0, "")
    built = inflate3d.create_model(name, plan="i3d", num_classes=0, global_pool="").eval()
    frame = timm.create_model(name, num_classes=0, global_pool="").eval()(clips[:, :, 0])
    axis = 2 if features.ndim == 5 and not is_channels_last(net) else 1
    for unpooled in (net(clips), built(clips)):  # as in 2D, of every frame that is left
        assert unpooled.shape == (*frame.shape[:axis], features.shape[axis], *frame.shape[axis:])
    net.reset_classifier(7, built_pool(name))
    assert net(clips).shape == (2, 7)


def built_pool(name):
    """The pooling that a net of this name is built with."""
    return "token" if "vit" in name else "avg"


@torch.no_grad()
def test_intermediates_come_at_every_level_and_end_in_the_features(net, clips):
    final, maps = net.forward_intermediates(clips)
    torch.testing.assert_close(final, net.forward_features(clips))
    info = FeatureInfo(net.feature_info, len(net.feature_info))  # as timm's own tests read it
    reductions = net.feature_info.reduction_dhw()
    assert len(maps) == len(info.channels()) == len(reductions)
    for y, channels, reduction in zip(maps, info.channels(), reductions, strict=True):
        assert tuple(y.shape[:2]) == (2, channels)
        assert tuple(y.shape[2:]) == tuple(math.ceil(n / r) for n, r in zip(clips.shape[2:], reduction, strict=True))
    last = net.forward_intermediates(clips, indices=1, intermediates_only=True)
    assert len(last) == 1
    torch.testing.assert_close(last[0], maps[-1])
    for index in range(len(maps)):
        (one,) = net.forward_intermediates(clips, indices=[index], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(one, maps[index])


@torch.no_grad()
def test_intermediates_of_tokens_come_frame_by_frame():
    net = inflate3d.create_model("test_vit", plan="i3d").eval()
    clips = torch.randn(2, 3, DEPTH, *net.trace_size)
    maps = net.forward_intermediates(clips, intermediates_only=True)
    tokens = net.forward_intermediates(clips, intermediates_only=True, output_fmt="NLC")
    for y_BCDHW, y_BDLC in zip(maps, tokens, strict=True):
        torch.testing.assert_close(y_BDLC, y_BCDHW.flatten(3).permute(0, 2, 3, 1))
    told = net.forward_intermediates(clips, output_dict=True)
    torch.testing.assert_close(told["image_features"], net.forward_features(clips))
    torch.testing.assert_close(told["image_intermediates"], maps)


def test_what_timm_tells_of_a_net_it_still_tells(name, net):
    net_2d = timm.create_model(name, num_classes=5)
    assert list(net.state_dict()) == list(net_2d.state_dict())
    assert net.pretrained_cfg == net_2d.pretrained_cfg == net.default_cfg
    assert net.pretrained_cfg["architecture"] == name == get_pretrained_cfg(name).architecture
    for layer in (net.pretrained_cfg["first_conv"], net.pretrained_cfg["classifier"]):
        assert f"{layer}.weight" in net.state_dict()
    assert net.feature_info.reduction() == [entry["reduction"] for entry in net_2d.feature_info]
    assert all(type(reduction) is int for reduction in net.feature_info.reduction())
    assert getattr(net, "no_weight_decay", set)() == getattr(net_2d, "no_weight_decay", set)()


@pytest.mark.parametrize("coarse", [False, True])
def test_groups_of_layers_are_the_2d_nets(name, net, coarse):
    groups = timm.models.group_parameters(net, net.group_matcher(coarse=coarse))
    net_2d = timm.create_model(name, num_classes=5)
    assert groups == timm.models.group_parameters(net_2d, net_2d.group_matcher(coarse=coarse))
    assert sorted(n for names in groups.values() for n in names) == sorted(n for n, _ in net.named_parameters())


def test_checkpointing_changes_no_gradient(net, clips):
    gradients = []
    for enable in (False, True):
        net.set_grad_checkpointing(enable)
        net.zero_grad()
        net(clips).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(g is not None for g in gradients[0])
    torch.testing.assert_close(*gradients)


@torch.no_grad()
@pytest.mark.parametrize("in_chans", [1, 4])
def test_channels_are_the_callers_and_one_channel_answers_as_three_alike(name, in_chans):
    net = inflate3d.create_model(name, plan="2d", in_chans=in_chans, num_classes=2).eval()
    assert net(torch.zeros(1, in_chans, 2, *net.trace_size)).shape == (1, 2)
