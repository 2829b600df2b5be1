"""Taps sum to the 2D filter, whatever the depth."""

import pytest
import torch
from inflate3d.errors import InputError
from inflate3d.inflation import Taps, inflate_kernel


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("taps", [Taps("mean"), Taps("center"), Taps("overshoot", 0.25), Taps("overshoot", 1.0)])
def test_slices_sum_to_the_2d_kernel(taps, depth):
    weight = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    kernel = inflate_kernel(weight, depth, taps=taps)
    assert kernel.shape == (4, 3, depth, 5, 5)
    torch.testing.assert_close(kernel.sum(2), weight, rtol=1e-14, atol=1e-14)


def test_center_fills_one_slice_and_mean_fills_all_alike():
    weight = torch.randn(2, 2, 3, 3)
    center = inflate_kernel(weight, 3, taps=Taps("center"))
    assert torch.equal(center[:, :, 1], weight)
    assert not center[:, :, [0, 2]].any()
    mean = inflate_kernel(weight, 5, taps=Taps("mean"))
    assert torch.equal(mean[:, :, 0], mean[:, :, 4])


def test_overshoot_has_one_plus_two_a_at_the_center_and_minus_a_beside_it():
    weight = torch.ones(1, 1, 1, 1)
    taps = inflate_kernel(weight, 5, taps=Taps("overshoot", 0.3)).flatten().tolist()
    assert taps == pytest.approx([0, -0.3, 1.6, -0.3, 0])


def test_random_keeps_the_scale_of_the_response_to_noise():
    torch.manual_seed(0)
    weight = torch.randn(256, 64, 3, 3)
    kernel = inflate_kernel(weight, 3, taps=Taps("random"))
    assert kernel.square().sum((1, 2, 3, 4)).mean().item() == pytest.approx(64 * 9, rel=0.02)


def test_unknown_taps_name_the_close_ones():
    with pytest.raises(InputError, match="unknown inflation 'centre'; close names: 'center'"):
        Taps("centre")
    with pytest.raises(InputError, match="overshoot is -1"):
        Taps("overshoot", -1)
    with pytest.raises(ValueError, match="depth is 0"):
        inflate_kernel(torch.zeros(1, 1, 3, 3), 0, taps=Taps())
