"""The decoder gives logits of the input's size for any strides; sliding windows cover a volume."""

from itertools import pairwise

import pytest
import torch
import torchio as tio
from inflate3d.contracts import Features
from inflate3d.heads.unet import UNetDecoder
from inflate3d.nn import sliding_window
from inflate3d.nn.sliding_window import window_corners
from torch.nn import functional as F

STRIDES = {
    "isotropic": [(2, 2, 2), (4, 4, 4), (8, 8, 8)],
    "depth kept": [(1, 2, 2), (1, 4, 4), (1, 8, 8)],
    "late depth": [(1, 2, 2), (1, 4, 4), (2, 8, 8), (4, 16, 16)],
    "one level": [(4, 4, 4)],
    "patch embed, all levels alike": [(2, 16, 16)] * 4,
    "full resolution first": [(1, 1, 1), (2, 2, 2)],
}


class ToyFeatureInfo:
    def __init__(self, strides):
        self.strides = strides
        self.num_pooled = 8

    def channels(self):
        return [5 + 3 * i for i in range(len(self.strides))]

    def reduction_dhw(self):
        return self.strides


def toy_features(info, size, batch=2):
    maps = []
    for channels, stride in zip(info.channels(), info.strides, strict=True):
        maps.append(torch.randn(batch, channels, *(-(-s // r) for s, r in zip(size, stride, strict=True))))
    return Features(maps=maps, pooled=torch.randn(batch, 8), size=size)


@pytest.mark.parametrize("name", STRIDES)
@pytest.mark.parametrize("size", [(16, 32, 32), (7, 19, 33), (1, 16, 16)])
def test_logits_have_the_size_of_the_input(name, size):
    info = ToyFeatureInfo(STRIDES[name])
    logits = UNetDecoder(info, num_classes=4)(toy_features(info, size))
    assert logits.shape == (2, 4, *size)


@pytest.mark.parametrize("name", STRIDES)
def test_all_levels_and_all_parameters_take_part(name):
    info = ToyFeatureInfo(STRIDES[name])
    decoder, features = UNetDecoder(info, num_classes=3), toy_features(info, (8, 16, 16))
    for m in features.maps:
        m.requires_grad_()
    decoder(features).square().sum().backward()
    assert all(m.grad is not None and m.grad.abs().sum() > 0 for m in features.maps)
    assert all(p.grad is not None for p in decoder.parameters())


def test_one_voxel_maps_and_a_batch_of_one_are_finite():
    info = ToyFeatureInfo(STRIDES["isotropic"])
    logits = UNetDecoder(info, num_classes=3).train()(toy_features(info, (1, 1, 1), batch=1))
    assert torch.isfinite(logits).all()


def test_the_decoder_keeps_no_running_statistics():
    assert not list(UNetDecoder(ToyFeatureInfo(STRIDES["isotropic"]), num_classes=3).buffers())


def test_a_wrong_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="2 numbers, the backbone has 3 levels"):
        UNetDecoder(ToyFeatureInfo(STRIDES["isotropic"]), num_classes=3, channels=[8, 8])


@pytest.mark.parametrize("size", [(8, 8, 8), (9, 20, 13), (5, 8, 30)])
def test_sliding_windows_of_a_pointwise_net_equal_the_net_on_the_whole(size):
    torch.manual_seed(0)
    image = torch.randn(2, 1, *size)

    def predict(patch):
        return torch.cat([patch, -patch], dim=1).softmax(1)

    answer = sliding_window(image, predict, window=(8, 8, 8), overlap=0.5, batch_size=3)
    torch.testing.assert_close(answer, predict(image), rtol=1e-5, atol=1e-6)


def test_a_small_image_is_padded_with_its_own_minimum_whatever_is_in_its_batch():
    torch.manual_seed(0)
    images = torch.randn(2, 2, 5, 6, 7) + torch.tensor([[0.0, 5.0], [-100.0, 9.0]]).view(2, 2, 1, 1, 1)

    def predict(patch):  # the answer depends on all that a window holds
        return patch - patch.mean((2, 3, 4), keepdim=True)

    answers = sliding_window(images, predict, window=(8, 8, 8))
    for image, answer in zip(images, answers, strict=True):
        padded = torch.stack([F.pad(channel, (0, 1, 0, 2, 0, 3), value=channel.min().item()) for channel in image])
        torch.testing.assert_close(answer, predict(padded[None])[0, :, :5, :6, :7], rtol=1e-4, atol=1e-4)


def test_windows_touch_both_borders_and_overlap_by_the_share_asked_for():
    corners = window_corners((20, 8, 5), (8, 8, 5), 0.5)
    starts = [d for d, _, _ in corners]
    assert starts[0] == 0
    assert starts[-1] == 12
    assert all(b - a <= 4 for a, b in pairwise(starts))
    assert {(h, w) for _, h, w in corners} == {(0, 0)}


def test_windows_weigh_most_at_their_centre():
    def predict(patch):  # right in the middle of each window, wrong at its rim
        answer = torch.zeros(len(patch), 2, 8, 8, 8)
        answer[:, 0] = 1
        answer[:, :, 2:6, 2:6, 2:6] = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1, 1)
        return answer

    answer = sliding_window(torch.zeros(1, 1, 16, 8, 8), predict, window=(8, 8, 8))
    assert (answer[0, 1, 2:14, 3:5, 3:5] > 0.5).all()


def test_answers_without_a_grid_are_averaged_over_the_windows():
    image = torch.randn(2, 1, 16, 8, 8)

    def predict(patch):
        return patch.amax((2, 3, 4)).repeat(1, 3)

    answer = sliding_window(image, predict, window=(8, 8, 8), overlap=0.5, batch_size=2)
    expected = torch.stack([predict(image[:, :, start : start + 8]) for start in (0, 4, 8)]).mean(0)
    torch.testing.assert_close(answer, expected)


@pytest.mark.parametrize("mode", ["average", "hann"])
def test_windows_and_blending_are_those_of_torchios_grid_where_its_windows_are_evenly_spread(mode, monkeypatch):
    size, window = (16, 12, 10), (8, 8, 4)
    image = torch.rand(1, 1, *size)
    ramp = torch.arange(8 * 8 * 4.0).reshape(window)  # the answer depends on the place in the window

    def predict(patch):
        return torch.cat([patch * ramp, -patch], dim=1)

    sampler = tio.GridSampler(tio.Subject(image=tio.ScalarImage(tensor=image[0])), window, (4, 4, 2))
    aggregator = tio.GridAggregator(sampler, overlap_mode=mode)
    for patch in sampler:
        aggregator.add_batch(predict(patch.image.data[None]), patch[tio.LOCATION][None])
    weight = tio.GridAggregator._get_hann_window(window) if mode == "hann" else torch.ones(window)
    monkeypatch.setitem(sliding_window.__globals__, "gaussian_weight", lambda _: weight)
    answer = sliding_window(image, predict, window=window, overlap=0.5)
    torch.testing.assert_close(answer[0], aggregator.get_output_tensor(), rtol=1e-5, atol=1e-4)
