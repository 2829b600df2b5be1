"""create_model: timm's contract in 3D, names with close ones, segmenters and transforms."""

import inflate3d
import numpy as np
import pytest
import timm
import torch
from inflate3d.errors import InputError
from nightly import slow_but


def test_features_only_gives_timms_list_in_3d():
    net = inflate3d.create_model("resnet18", features_only=True, out_indices=(1, 3), plan="slow").eval()
    maps = net(torch.zeros(1, 3, 5, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(1, 64, 5, 16, 24), (1, 256, 5, 4, 6)]
    assert net.feature_info.channels() == [64, 256]
    assert net.feature_info.reduction() == [4, 16]
    assert net.feature_info.reduction_dhw() == [(1, 4, 4), (1, 16, 16)]


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"], 1))
def test_features_of_channels_last_and_token_nets_come_channels_first(name):
    net = inflate3d.create_model(name, features_only=True, plan="2d").eval()
    with torch.no_grad():
        maps = net(torch.zeros(1, 3, 2, 224, 224))
    for m, channels, reduction in zip(maps, net.feature_info.channels(), net.feature_info.reduction(), strict=True):
        assert tuple(m.shape) == (1, channels, 2, 224 // reduction, 224 // reduction)


@pytest.mark.parametrize("in_chans", [1, 2, 4])
def test_the_stem_is_adapted_as_timm_does(in_chans):
    net = inflate3d.create_model("resnet10t", in_chans=in_chans, num_classes=4).eval()
    assert net(torch.zeros(2, in_chans, 4, 64, 64)).shape == (2, 4)


def test_no_classes_gives_pooled_features_and_a_classifier_can_be_put_back():
    net = inflate3d.create_model("resnet10t", num_classes=0).eval()
    x = torch.randn(2, 3, 4, 64, 64)
    with torch.no_grad():
        pooled = net.forward_features(x).mean((2, 3, 4))
        torch.testing.assert_close(net(x), pooled, rtol=1e-4, atol=1e-5)
    net.reset_classifier(7)
    assert net(x).shape == (2, 7)
    assert net.get_classifier().out_features == 7


def test_checkpointed_gradients_equal_plain_ones():
    torch.manual_seed(0)
    net = inflate3d.create_model("resnet10t", num_classes=3).eval()
    x = torch.randn(2, 3, 4, 64, 64)
    grads = []
    for enable in (False, True):
        net.set_grad_checkpointing(enable)
        net.zero_grad()
        net(x).square().sum().backward()
        grads.append(net.conv1[0].weight.grad.clone())
    torch.testing.assert_close(*grads)


def test_group_matcher_covers_every_parameter():
    net = inflate3d.create_model("resnet10t")
    groups = timm.models.group_parameters(net, net.group_matcher(coarse=True))
    assert sorted(n for names in groups.values() for n in names) == sorted(n for n, _ in net.named_parameters())


@pytest.mark.slow
def test_torchvision_googlenet_with_plan_i3d_has_the_papers_map_sizes():
    # Fig. 3 of arXiv:1705.07750 for (64, 224, 224), here with a quarter of the frames.
    kwargs = {"init_weights": False}
    net = inflate3d.create_model("torchvision/googlenet", plan="i3d", features_only=True, **kwargs).eval()
    with torch.no_grad():
        maps = net(torch.zeros(1, 3, 16, 224, 224))
    assert [tuple(m.shape[2:]) for m in maps] == [(8, 112, 112), (8, 56, 56), (8, 28, 28), (4, 14, 14), (2, 7, 7)]


@pytest.mark.slow
def test_torchvision_nets_take_classes_and_channels():
    net = inflate3d.create_model("torchvision/resnet18", num_classes=5, in_chans=1).eval()
    assert net(torch.zeros(2, 1, 4, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5", "unknown model 'resnet5'; close names: 'resnet5"),
        ("resnet50.a1_in1kk", "unknown weights 'resnet50.a1_in1kk'; close names: 'resnet50.a1_in1k'"),
        ("torchvision/googlenett", "unknown model .*'torchvision/googlenet'"),
        ("local-dir:/nowhere", "holds no config.json"),
    ],
)
def test_an_unknown_name_gets_close_ones(name, message):
    with pytest.raises(InputError, match=message):
        inflate3d.create_model(name)
    with pytest.raises(InputError, match=message):
        inflate3d.create_segmenter(name, num_classes=2)


@pytest.mark.slow
def test_a_tag_of_timms_without_weights_is_a_name_too():
    assert "test_maxvit.untrained" in timm.list_models("test_maxvit.*", include_tags=True)
    inflate3d.create_model("test_maxvit.untrained", num_classes=2)


def test_arguments_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="in_chans is 0"):
        inflate3d.create_model("resnet10t", in_chans=0)
    with pytest.raises(InputError, match="norm_domain"):
        inflate3d.create_model("resnet10t", norm_domain="x")


@pytest.mark.parametrize("size", [(19, 96, 80), (32, 32, 32), (3, 40, 50)])
@pytest.mark.parametrize("name", slow_but(["resnet10t", "convnext_atto"], 1))
def test_a_segmenter_answers_at_the_inputs_size(name, size):
    net = inflate3d.create_segmenter(name, num_classes=3, in_chans=1, input_size=size).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 1, *size)).shape == (1, 3, *size)


def test_the_transform_of_a_2d_net_is_its_own_normalisation():
    net = inflate3d.create_model("tf_efficientnet_lite0")  # mean and std .5
    transform = inflate3d.create_transform(net)
    x = transform(np.full((3, 2, 4, 4), 255, np.uint8))
    assert x.dtype == torch.float32
    assert torch.equal(x, torch.ones(3, 2, 4, 4))
    with pytest.raises(InputError, match="expected \\(C, D, H, W\\) with C = 3"):
        transform(np.zeros((2, 2, 4, 4), np.uint8))


def test_a_training_transform_varies_and_keeps_the_shape():
    transform = inflate3d.create_transform(inflate3d.create_model("tf_efficientnet_lite0"), is_training=True)
    clip = np.random.default_rng(0).integers(0, 255, (3, 4, 32, 32), dtype=np.uint8)
    torch.manual_seed(0)
    draws = [transform(clip) for _ in range(8)]
    assert all(d.shape == (3, 4, 32, 32) for d in draws)
    assert any(not torch.equal(draws[0], d) for d in draws[1:])


def test_names_can_be_listed_by_wildcard():
    assert "tf_efficientnet_lite0" in inflate3d.list_models("*lite0")
    assert inflate3d.list_models("torchvision/goog*") == ["torchvision/googlenet"]
