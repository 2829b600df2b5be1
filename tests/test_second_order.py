"""Gradients of gradients: each Function of ours against finite differences, and whole nets by either set of ways."""

import inflate3d
import pytest
import torch
from gpu_ways import take_gpu_ways
from inflate3d.inflation.depthwise import _Depthwise, convolve_by_taps
from inflate3d.inflation.ends import blind_ends, trim_depth
from inflate3d.inflation.minimal_filtering import convolve_filtered
from inflate3d.inflation.replicated import Sizes, convolve_copied, convolve_edges, convolve_in_channels, convolve_summed
from inflate3d.inflation.small_maps import convolve_small
from nightly import slow_but


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.slow
@pytest.mark.parametrize("frames", [2, 3])
def test_functions_are_right_to_second_order(frames):
    torch.manual_seed(0)
    x, weight, bias = randn(frames, 1, 3, 3), randn(2, 1, 3, 3, 3), randn(2)
    first = (x[:1].detach().requires_grad_(), weight, bias)
    plain, strided = (Sizes(frames, d, (s, 1), (1, 1), (1, 1), 1) for d, s in ((1, 1), (2, 2)))
    dilated = plain._replace(padding=(2, 2), dilation=(2, 2), groups=2)
    single = plain._replace(padding=(0, 0), groups=2)
    wide = plain._replace(padding=(0, 2), groups=2, trim=(1, 1))
    grouped = (randn(frames, 2, 2, 3), randn(2, 1, 3, 3, 3))
    functions = {
        "filtered": (lambda x, w: convolve_filtered(x, w, None, plain), (x, weight)),
        "small": (lambda x, w: convolve_small(x, w, None, strided._replace(trim=(1, 1))), (x, weight)),
        "copied": (lambda *inputs: convolve_copied(*inputs, strided), (x, weight, bias)),
        "edges": (lambda *inputs: convolve_edges(*inputs, strided), (x, weight, bias)),
        "summed": (lambda *inputs: convolve_summed(*inputs, plain._replace(frames=1, trim=(1, 1))), first),
        "in channels": (lambda *inputs: convolve_in_channels(*inputs, strided), (x, weight, bias)),
        "depthwise": (
            lambda x, w: _Depthwise.apply(x, w, plain._replace(groups=2)),
            (randn(frames, 2, 3, 3), grouped[1]),
        ),
        "larger than the map": (lambda x, w: _Depthwise.apply(x, w, plain._replace(groups=2)), grouped),
        "1x1": (lambda x, w: _Depthwise.apply(x, w, single), (grouped[0], randn(2, 1, 3, 1, 1))),
        "dilated": (lambda x, w: _Depthwise.apply(x, w, dilated), grouped),
        "by rows": (lambda x, w: _Depthwise.apply(x, w, wide), (grouped[0], randn(2, 1, 5, 1, 5))),
        "trimmed": (lambda w: trim_depth(w, blind_ends(3, frames - 1)).square(), (weight,)),
        "taps": (lambda x, w: convolve_by_taps(x, w, None, plain._replace(groups=2)).square(), grouped),
        "picked taps": (lambda x, w: convolve_by_taps(x, w, None, strided._replace(groups=2)), grouped),
    }
    for name, (function, inputs) in functions.items():
        assert torch.autograd.gradcheck(function, tuple(inputs)), name
        assert torch.autograd.gradgradcheck(function, tuple(inputs)), name


@pytest.mark.parametrize("name", slow_but(["test_resnet", "test_efficientnet"], 1))
def test_a_gradient_penalty_learns_alike_on_every_way(name, monkeypatch):
    torch.manual_seed(0)
    net = inflate3d.create_model(name, num_classes=3, inflation="overshoot").double().eval()
    x = torch.randn(2, 3, 6, 64, 64, dtype=torch.float64, requires_grad=True)

    def penalty():
        net.zero_grad()
        (slope,) = torch.autograd.grad(net(x)[:, 0].sum(), x, create_graph=True)
        slope.square().sum().backward()
        return {key: p.grad.clone() for key, p in net.named_parameters() if p.grad is not None}

    got = penalty()
    take_gpu_ways(monkeypatch)
    expected = penalty()
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-7, atol=1e-12, msg=key)
