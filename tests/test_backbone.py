"""The training backbone: stems by kind of input, statistics by domain, and every parameter in every batch."""

import pytest
import torch
from inflate3d.contracts import DatasetCard, InputSpec
from inflate3d.errors import InputError
from inflate3d.inflation import folding
from inflate3d.models import Backbone, BackboneConfig


def card(name, modality, channels):
    return DatasetCard(
        name=name,
        media="volume",
        title=name,
        modality=modality,
        url="",
        licence="CC0-1.0",
        commercial_use=True,
        weights_may_be_published=True,
        citation="",
        input=InputSpec(channels=tuple(f"c{i}" for i in range(channels))),
    )


CARDS = {"brain": card("brain", "mri", 1), "clips": card("clips", "rgb", 3)}


def make(norm="per_domain", stems=None, name="resnet10t"):
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(name, norm=norm, stems=stems))
    backbone.setup_domains(CARDS)
    return backbone


def test_a_domain_updates_its_own_statistics_only():
    backbone = make().train()
    norm = backbone.net.bn1
    before = norm.domain_mean.clone()
    backbone(torch.randn(2, 1, 8, 32, 32) + 3, domain="brain")
    assert not torch.equal(norm.domain_mean[0], before[0])
    assert torch.equal(norm.domain_mean[1], before[1])


@pytest.mark.slow
def test_evaluation_uses_the_statistics_of_the_domain():
    backbone = make().train()
    x = torch.randn(4, 3, 8, 32, 32) * 2 + 1
    for _ in range(20):
        backbone(x, domain="clips")
    backbone.eval()
    with torch.no_grad():
        own, other = backbone(x, domain="clips").pooled, backbone(x, domain="brain").pooled
    assert not torch.allclose(own, other, atol=1e-3)


@pytest.mark.slow
def test_state_survives_a_round_trip_whatever_domain_was_active():
    a, b = make().train(), make()
    a(torch.randn(2, 1, 8, 32, 32) + 3, domain="brain")
    a(torch.randn(2, 3, 8, 32, 32) - 3, domain="clips")
    b.load_state_dict(a.state_dict())
    a.eval(), b.eval()
    x = torch.randn(1, 3, 8, 32, 32)
    for domain in CARDS:
        assert torch.equal(a(x, domain=domain).pooled, b(x, domain=domain).pooled)
    assert not any(k.endswith("running_mean") for k in a.state_dict())


@pytest.mark.parametrize("told", [False, True], ids=["as it is built", "told to train"])
def test_frozen_norms_never_move(told: bool):
    backbone = make("frozen")
    backbone = backbone.train() if told else backbone
    before = backbone.net.bn1.running_mean.clone()
    backbone(torch.randn(2, 3, 8, 32, 32) + 5, domain="clips")
    assert torch.equal(backbone.net.bn1.running_mean, before)


def test_group_norm_keeps_the_affine_and_the_activation():
    backbone = make("group", name="tf_efficientnet_lite0")
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in backbone.modules())
    norm = backbone.net.bn1
    assert isinstance(norm, torch.nn.GroupNorm)
    assert isinstance(norm.act, torch.nn.ReLU6)
    assert backbone(torch.randn(2, 3, 8, 32, 32), domain="clips").pooled.isfinite().all()


@pytest.mark.parametrize("norm", ["per_domain", "shared", "frozen", "group"])
def test_every_parameter_takes_part_in_a_batch_of_one_domain(norm):
    backbone = make(norm, stems={"rgb": 3, "mri": 1}).train()
    features = backbone(torch.randn(2, 1, 8, 32, 32), domain="brain")
    (features.pooled.sum() + sum(m.sum() for m in features.maps)).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []


def test_the_grey_stem_is_the_sum_of_the_rgb_one():
    backbone = make(stems={"rgb": 3, "mri": 1}).eval()
    grey = torch.randn(1, 1, 8, 32, 32)
    norm_free = backbone.stem_switch
    frames = grey.transpose(1, 2).flatten(0, 1)
    with folding(1), backbone.domain.serving("brain"):
        as_grey = norm_free(frames)
    with folding(1), backbone.domain.serving("clips"):
        torch.testing.assert_close(norm_free(frames.expand(-1, 3, -1, -1)), as_grey, rtol=1e-4, atol=1e-5)


def test_feature_info_tells_the_maps():
    backbone = make()
    features = backbone.eval()(torch.randn(1, 3, 8, 64, 32), domain="clips")
    assert [m.shape[1] for m in features.maps] == backbone.feature_info.channels()
    assert features.pooled.shape == (1, backbone.feature_info.num_pooled)
    for m, (d, h, w) in zip(features.maps, backbone.feature_info.reduction_dhw(), strict=True):
        assert tuple(m.shape[2:]) == (-(-8 // d), 64 // h, 32 // w)


def test_minimal_features_fit_the_heads():
    minimal = make().minimal_features()
    assert [m.shape[1] for m in minimal.maps] == make().feature_info.channels()
    assert minimal.pooled.isfinite().all()


@pytest.mark.parametrize(
    ("stems", "message"),
    [
        ({"rgb": 3}, "unknown stem 'mri'"),
        ({"rgb": 3, "mri": 2}, "stems.mri is 2, but data.datasets.brain has 1 channels"),
        ({}, "stems is empty"),
    ],
)
def test_stems_that_do_not_fit_are_refused(stems, message):
    with pytest.raises(InputError, match=message):
        make(stems=stems)


def test_channels_that_do_not_fit_one_stem_are_refused():
    backbone = Backbone(BackboneConfig("resnet10t"))
    with pytest.raises(InputError, match=r"data.datasets.four: 4 channels .* the backbone's stem takes 3"):
        backbone.setup_domains({"four": card("four", "mri", 4)})


def test_unknown_domains_and_norms_get_close_names():
    with pytest.raises(InputError, match="unknown domain 'brian'; close names: 'brain'"):
        make()(torch.zeros(1, 3, 8, 32, 32), domain="brian")
    with pytest.raises(InputError, match="unknown norm 'per_dommain'; close names: 'per_domain'"):
        Backbone(BackboneConfig("resnet10t", norm="per_dommain"))
