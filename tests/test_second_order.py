"""Gradients of gradients: each Function of ours against finite differences, and whole nets against torch's conv3d."""

import inflate3d
import pytest
import torch
from inflate3d.inflation import convolution, layers
from inflate3d.inflation.convolution import _SummedTaps
from inflate3d.inflation.depthwise import _Depthwise, sum_of_taps
from inflate3d.inflation.minimal_filtering import convolve_filtered
from inflate3d.inflation.small_maps import convolve_small
from nightly import slow_but


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.slow
@pytest.mark.parametrize("frames", [2, 3])
def test_functions_are_right_to_second_order(frames):
    torch.manual_seed(0)
    x, weight = randn(2 * frames, 2, 3, 4), randn(3, 2, 3, 3, 3)
    functions = {
        "filtered": (lambda x, w: convolve_filtered(x, w, frames, (1, 1), (1, 1)), (x, weight)),
        "small": (lambda x, w: convolve_small(x, w, frames, (2, 1, 2), (1, 1), (1, 1)), (x, weight)),
        "depthwise": (lambda x, w: _Depthwise.apply(x, w, frames), (randn(frames, 2, 3, 3), randn(2, 1, 3, 3, 3))),
        "summed taps": (_SummedTaps.apply, (weight,)),
        "sum of taps": (
            lambda *t: sum_of_taps(list(t), frames, None).square(),
            [randn(frames, 2, 1, 2) for _ in "123"],
        ),
    }
    for name, (function, inputs) in functions.items():
        assert torch.autograd.gradcheck(function, tuple(inputs)), name
        assert torch.autograd.gradgradcheck(function, tuple(inputs)), name


@pytest.mark.parametrize("name", slow_but(["test_resnet", "test_efficientnet"], 1))
def test_a_gradient_penalty_learns_as_through_torchs_own_conv3d(name, monkeypatch):
    torch.manual_seed(0)
    net = inflate3d.create_model(name, num_classes=3, inflation="overshoot").double().eval()
    x = torch.randn(2, 3, 6, 64, 64, dtype=torch.float64, requires_grad=True)

    def penalty():
        net.zero_grad()
        (slope,) = torch.autograd.grad(net(x)[:, 0].sum(), x, create_graph=True)
        slope.square().sum().backward()
        return {key: p.grad.clone() for key, p in net.named_parameters() if p.grad is not None}

    got = penalty()
    for module in (convolution, layers):
        monkeypatch.setattr(module, "is_eager_on_cpu", lambda x: False)
    expected = penalty()
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-7, atol=1e-12, msg=key)
