"""torchvision's nets keep timm's contract in 3D: features at every level, heads, stems, and a place in a backbone."""

import inflate3d
import pytest
import torch
from inflate3d.errors import InputError
from inflate3d.models import Backbone, BackboneConfig
from nightly import slow_but
from torchvision import models

# name, channels and reductions of its levels
LEVELS = {
    "resnet18": ([64, 64, 128, 256, 512], [2, 4, 8, 16, 32]),
    "googlenet": ([64, 192, 480, 832, 1024], [2, 4, 8, 16, 32]),
    "squeezenet1_1": ([64, 128, 256, 512], [2, 4, 8, 16]),
    "shufflenet_v2_x0_5": ([24, 24, 48, 96, 1024], [2, 4, 8, 16, 32]),
    "mobilenet_v3_small": ([16, 16, 24, 48, 576], [2, 4, 8, 16, 32]),
}
MORE_LEVELS = {
    "densenet121": ([64, 256, 512, 1024, 1024], [2, 4, 8, 16, 32]),
    "inception_v3": ([64, 192, 288, 768, 2048], [2, 4, 8, 16, 32]),
    "vgg11_bn": ([64, 128, 256, 512, 512, 512], [1, 2, 4, 8, 16, 32]),
    "swin_t": ([96, 192, 384, 768], [4, 8, 16, 32]),
    "maxvit_t": ([64, 64, 128, 256, 512], [2, 4, 8, 16, 32]),
    "mnasnet0_5": ([8, 16, 24, 48, 1280], [2, 4, 8, 16, 32]),
    "regnet_y_400mf": ([32, 48, 104, 208, 440], [2, 4, 8, 16, 32]),
}


def check_features(name, expected):
    net = inflate3d.create_model(f"torchvision/{name}", features_only=True, in_chans=1, plan="isotropic").eval()
    assert (net.feature_info.channels(), net.feature_info.reduction()) == expected
    clip = torch.randn(1, 1, 5, 224, 224)
    with torch.no_grad():
        maps = net(clip)
    for y, channels, (along_d, *_), spatial in zip(
        maps, expected[0], net.feature_info.reduction_dhw(), expected[1], strict=True
    ):
        assert y.shape[:3] == (1, channels, -(-5 // along_d))
        assert abs(y.shape[3] - 224 / spatial) <= 4  # unpadded stems lose a few
        assert y.shape[3] == y.shape[4]


@pytest.mark.parametrize("name", slow_but(LEVELS, 1))
def test_every_level_gives_features(name):
    check_features(name, LEVELS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_LEVELS)
def test_every_level_gives_features_slow(name):
    check_features(name, MORE_LEVELS[name])


@pytest.mark.parametrize("name", slow_but(["resnet18", "squeezenet1_1", "googlenet"], 2))
@pytest.mark.parametrize("in_chans", slow_but([1, 3, 4], 1))
def test_channels_and_classes_are_the_callers(name, in_chans):
    net = inflate3d.create_model(f"torchvision/{name}", in_chans=in_chans, num_classes=6, plan="2d").eval()
    clip = torch.randn(2, in_chans, 2, 64, 64)
    with torch.no_grad():
        assert net(clip).shape == (2, 6)
        net.reset_classifier(3)
        assert net(clip).shape == (2, 3)
        net.reset_classifier(0)
        assert net(clip).shape == (2, net.num_features)


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(["resnet18", "mobilenet_v3_small"], 1))
def test_2d_answers_are_torchvisions_own(name):
    own = models.get_model(name, num_classes=5).eval()
    net = inflate3d.create_model(f"torchvision/{name}", plan="2d", num_classes=5).eval()
    net.load_state_dict({k: v[:, :, None] if k_is_inflated(net, k) else v for k, v in own.state_dict().items()})
    frame = torch.randn(2, 3, 80, 96)
    with torch.no_grad():
        torch.testing.assert_close(net(frame.unsqueeze(2)), own(frame), rtol=1e-4, atol=1e-5)
        last, maps = net.forward_intermediates(frame.unsqueeze(2), indices=[0, -1])
        torch.testing.assert_close(last, maps[-1])
        torch.testing.assert_close(net.forward_head(last), own(frame), rtol=1e-4, atol=1e-5)
        pooled = net.forward_head(last, pre_logits=True)
        torch.testing.assert_close(net.get_classifier()(pooled), own(frame), rtol=1e-4, atol=1e-5)


def k_is_inflated(net, key):
    return net.state_dict()[key].ndim == 5


def test_a_torchvision_net_serves_as_a_backbone():
    backbone = Backbone(BackboneConfig("torchvision/resnet18", plan="2d")).eval()
    backbone.domain.names = ["toy"]
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, 2, 64, 64), domain="toy")
    assert [m.shape[1] for m in features.maps] == backbone.feature_info.channels() == [64, 64, 128, 256, 512]
    assert features.pooled.shape == (2, backbone.feature_info.num_pooled)


@pytest.mark.slow
def test_what_torchvision_cannot_give_is_refused_with_the_remedy():
    with pytest.raises(InputError, match="global_pool is 'max'; torchvision's nets pool as they are built"):
        inflate3d.create_model("torchvision/resnet18", global_pool="max")
    with pytest.raises(InputError, match="gives no feature maps: it has tokens only; timm's ViTs give maps"):
        inflate3d.create_model("torchvision/vit_b_32", features_only=True)
    with pytest.raises(InputError, match="unknown model 'torchvision/resnet19'; close names: 'torchvision/resnet"):
        inflate3d.create_model("torchvision/resnet19")


def test_a_torchvision_net_knows_its_transform():
    transform = inflate3d.create_transform(inflate3d.create_model("torchvision/shufflenet_v2_x0_5", plan="2d"))
    white = transform(torch.full((3, 1, 2, 2), 255, dtype=torch.uint8))
    torch.testing.assert_close(white[:, 0, 0, 0], torch.tensor([(1 - 0.485) / 0.229, 0.544 / 0.224, 0.594 / 0.225]))
