"""create_segmenter: logits of the input's size for every family of timm, whatever sizes its encoder takes."""

import logging

import inflate3d
import pytest
import timm
import torch
from inflate3d.models.architectures import smallest_of_each_family
from inflate3d.models.sources import image_size
from inflate3d.nn.pyramid import Pyramid
from nightly import families, slow_but
from torch import nn

SIZES = [(19, 96, 80), (64, 64, 64)]
SMALL = {
    "test_resnet": ({}, "same", (96, 80)),
    "test_vit": ({}, "same", (96, 80)),
    "test_vit_relpos": ({"img_size": (96, 80)}, "same", (96, 80)),  # a fixed size, chosen by timm's img_size=
    "test_coatnet": ({"img_size": (96, 96)}, "pad", (96, 96)),  # one that must be a multiple of 32
    "dla46x_c": ({}, "pad", (96, 96)),  # no fixed size, but a multiple of 32
}


def answer(net, *size):
    with torch.no_grad():
        return net.eval()(torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", slow_but(SMALL, 1))
def test_logits_have_the_inputs_size(name):
    options, how, frame = SMALL[name]
    net = inflate3d.create_segmenter(name, num_classes=3, in_chans=1, input_size=SIZES[0])
    assert net.encoder.net_spec.timm_kwargs == options
    assert net.fits == {(96, 80): (how, frame)}
    for size in SIZES:
        assert answer(net, *size).shape == (1, 3, *size)


@pytest.mark.slow
@pytest.mark.parametrize("row", families())
def test_every_family_of_timm_segments(row):
    for size in SIZES:
        net = inflate3d.create_segmenter(row.name, num_classes=2, in_chans=1, input_size=size)
        logits = answer(net, *size)
        assert logits.shape == (1, 2, *size)
        assert logits.isfinite().all()


def test_every_family_that_timm_registers_is_tested():
    assert {row.family for row in smallest_of_each_family()} >= set(timm.list_modules()) - {"timm"}  # inflate3d.timm's


@pytest.mark.slow
def test_padded_frames_are_answered_as_if_they_were_that_large():
    net = inflate3d.create_segmenter("dla46x_c", num_classes=3, in_chans=1, plan="2d").eval()
    clip = torch.randn(1, 1, 2, 70, 96)
    with torch.no_grad():
        padded = nn.functional.pad(clip, (0, 0, 0, 26, 0, 0), mode="replicate")
        torch.testing.assert_close(net(clip), net(padded)[..., :70, :])


@pytest.mark.slow
def test_a_fixed_encoder_gets_resized_frames_and_the_log_says_so_once(caplog):
    net = inflate3d.create_segmenter("test_vit_relpos", num_classes=2, in_chans=1, plan="2d")  # built for 160 x 160
    caplog.clear()
    with caplog.at_level(logging.INFO, "inflate3d"):
        assert answer(net, 2, 96, 80).shape == (1, 2, 2, 96, 80)
        answer(net, 2, 96, 80)
        answer(net, 2, 160, 160)
    assert [r.message for r in caplog.records] == ["frames of 96 x 80: resized to 160 x 160 for the encoder"]


def test_trying_sizes_leaves_the_net_as_it_was():
    net = inflate3d.create_model("resnet10t", plan="2d", features_only=True).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert image_size.takes(net, (1, 3, 2, 64, 64))
    assert not image_size.takes(net, (1, 4, 2, 64, 64))
    assert all(module.training for module in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_options_that_the_caller_gives_are_kept():
    assert image_size.size_options("test_vit_relpos", (96, 80), {"img_size": 64}) == {}
    assert image_size.size_options("deit_tiny_patch16_224", None, {}) == {"dynamic_img_size": True}
    assert image_size.size_options("torchvision/resnet18", (96, 80), {}) == {}


@pytest.mark.slow
def test_all_parameters_of_a_vit_segmenter_learn():
    net = inflate3d.create_segmenter("test_vit", num_classes=2, in_chans=1, input_size=(16, 64, 64)).train()
    net(torch.randn(1, 1, 16, 64, 64)).square().mean().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


@pytest.mark.parametrize(
    ("reduction", "channels", "sizes"),
    [
        ((2, 16, 16), [32, 48], [(8, 16, 20), (8, 8, 10), (4, 4, 5)]),  # D is made finer as far as it was reduced
        ((8, 8, 8), [48], [(8, 8, 10), (4, 4, 5)]),
        ((1, 4, 4), [], [(4, 4, 5)]),
        ((1, 7, 7), [48], [(4, 8, 10), (4, 4, 5)]),
    ],
)
def test_a_pyramid_goes_down_to_a_quarter(reduction, channels, sizes):
    pyramid = Pyramid(96, reduction)
    maps = pyramid([torch.randn(2, 96, 4, 4, 5)])
    assert pyramid.channels == channels
    assert [tuple(m.shape[1:]) for m in maps] == [(c, *s) for c, s in zip([*channels, 96], sizes, strict=True)]


@pytest.mark.slow
def test_a_net_without_features_only_segments_by_its_intermediates(monkeypatch):
    def create_model(*args, features_only=False, **kwargs):
        if features_only:
            raise RuntimeError("features_only not implemented for ToyNet.")  # timm's words
        return inflate3d.create_model(*args, **kwargs)

    monkeypatch.setattr("inflate3d.models.segmenter.create_model", create_model)
    net = inflate3d.create_segmenter("test_vit", num_classes=2, in_chans=1, input_size=(4, 64, 64))
    assert answer(net, 4, 64, 64).shape == (1, 2, 4, 64, 64)
    assert type(net.encoder).__name__ == "Intermediates"


def test_a_torchvision_net_segments():
    net = inflate3d.create_segmenter("torchvision/squeezenet1_1", num_classes=2, in_chans=1)
    assert answer(net, 5, 48, 40).shape == (1, 2, 5, 48, 40)
