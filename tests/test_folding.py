"""Folded layers equal plain 3D layers; written against torch's own Conv3d and pools."""

import pytest
import torch
import torch.nn.functional as F
from gpu_ways import take_gpu_ways
from inflate3d.inflation import ways
from inflate3d.inflation.convolution import FoldedConv, FoldedPointwise, fold_pointwise
from inflate3d.inflation.ends import depth_padding
from inflate3d.inflation.layers import FoldedDropPath, FoldedPool, fold_layer, folding
from inflate3d.inflation.minimal_filtering import convolve_filtered
from inflate3d.inflation.replicated import Sizes
from inflate3d.inflation.ways import Way, way_of
from timm.layers import Conv2dSame, DropPath, ScaledStdConv2d, StdConv2d
from torch import nn


def fold(layer, mixin, clips, kernel, stride):
    """Fold a layer; what comes back runs it on the frames of that many clips."""
    fold_layer(layer, mixin, kernel, stride)

    def run(frames):
        with folding(clips):
            return layer(frames)

    return run


def replicate(x_BCDHW, kernel, stride):
    before, after = depth_padding(x_BCDHW.shape[2], kernel, stride)
    return F.pad(x_BCDHW, (0, 0, 0, 0, before, after), mode="replicate")


def to_frames(x_BCDHW):
    return x_BCDHW.transpose(1, 2).flatten(0, 1)


def check_against_conv3d(conv, x, stride=1):
    """A 2D layer with a 3D weight answers and learns as torch's Conv3d on clips whose ends are replicated."""
    run = fold(conv, FoldedConv, x.shape[0], conv.weight.shape[2], stride)
    got = run(to_frames(x))
    padded = replicate(x, conv.weight.shape[2], stride)
    options = ((stride, *conv.stride), (0, *conv.padding), (1, *conv.dilation), conv.groups)
    expected = to_frames(F.conv3d(padded, conv.weight, conv.bias, *options))
    torch.testing.assert_close(got, expected)
    assert got.shape[0] == x.shape[0] * -(-x.shape[2] // stride)
    seed = torch.randn_like(got)
    inputs = (x, conv.weight, conv.bias)
    for a, b in zip(torch.autograd.grad(got, inputs, seed), torch.autograd.grad(expected, inputs, seed), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("kernel", [1, 2, 3, 7])
@pytest.mark.parametrize("groups", [1, 6])
def test_folded_conv_equals_conv3d_with_replicated_time_forward_and_backward(groups, kernel, stride, depth):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=groups).double()
    conv.weight = nn.Parameter(torch.randn(6, 6 // groups, kernel, 3, 3, dtype=torch.float64))
    check_against_conv3d(conv, torch.randn(2, 6, depth, 8, 9, dtype=torch.float64, requires_grad=True), stride)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3, 7])
@pytest.mark.parametrize("groups", [1, 6])
def test_the_ways_of_a_gpu_equal_conv3d_forward_and_backward(groups, kernel, stride, depth, monkeypatch):
    take_gpu_ways(monkeypatch)
    test_folded_conv_equals_conv3d_with_replicated_time_forward_and_backward(groups, kernel, stride, depth)


def test_the_ways_of_a_gpu_are_these():
    """By counted rules: nothing is copied of long clips with few channels, and the net's other clips are."""
    taken = {}
    for frames, channels, groups in [(1, 64, 1), (4, 64, 1), (8, 64, 1), (8, 256, 1), (32, 256, 1), (8, 64, 64)]:
        x, weight = torch.empty(frames, channels, 8, 8), torch.empty(64, channels // groups, 3, 3, 3)
        sizes = Sizes(frames, 1, (1, 1), (1, 1), (1, 1), groups)
        taken[frames, channels, groups] = way_of(x.to("meta"), weight.to("meta"), sizes).name
    assert list(taken.values()) == ["SUMMED", "COPIED", "EDGES", "COPIED", "EDGES", "EDGES"]


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 2), (3, 9)])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("dilation", [1, 2])
def test_a_kernel_larger_than_the_map_is_trimmed_exactly(dilation, groups, size):
    torch.manual_seed(0)
    pad = 3 * dilation
    conv = nn.Conv2d(4, 4, 7, padding=pad, groups=groups, dilation=dilation).double()
    conv.weight = nn.Parameter(torch.randn(4, 4 // groups, 5, 7, 7, dtype=torch.float64))
    run = fold(conv, FoldedConv, 2, 5, 1)
    x = torch.randn(2, 4, 2, *size, dtype=torch.float64)
    expected = F.conv3d(replicate(x, 5, 1), conv.weight, conv.bias, 1, (0, pad, pad), (1, dilation, dilation), groups)
    torch.testing.assert_close(run(to_frames(x)), to_frames(expected))


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("depth", [1, 6, 7])
@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (3, 1), (5, 4)])
def test_folded_max_pool_equals_max_pool3d(kernel, stride, depth, ceil_mode):
    x = torch.randn(2, 4, depth, 9, 10)
    pool = fold(nn.MaxPool2d(3, 2, 1, ceil_mode=ceil_mode), FoldedPool, 2, kernel, stride)
    padded = replicate(x, kernel, stride)
    expected = F.max_pool3d(padded, (kernel, 3, 3), (stride, 2, 2), (0, 1, 1), ceil_mode=ceil_mode)
    torch.testing.assert_close(pool(to_frames(x)), to_frames(expected[:, :, : -(-depth // stride)]))


def test_folded_average_pool_equals_avg_pool3d():
    x = torch.randn(2, 4, 6, 8, 8)
    pool = fold(nn.AvgPool2d(2, 2), FoldedPool, 2, 2, 2)
    torch.testing.assert_close(pool(to_frames(x)), to_frames(F.avg_pool3d(x, 2, 2)))


@pytest.mark.parametrize("cls", [StdConv2d, ScaledStdConv2d])
def test_weight_standardisation_uses_the_temporal_sum(cls):
    torch.manual_seed(0)
    conv = cls(4, 5, 3, padding=1)
    x = torch.randn(1, 4, 8, 8)
    expected = conv(x)
    share = torch.tensor([0.2, 0.5, 0.3])
    conv.weight = nn.Parameter(conv.weight.data[:, :, None] * share[:, None, None])
    run = fold(conv, FoldedConv, 1, 3, 1)
    torch.testing.assert_close(run(x.repeat(4, 1, 1, 1)), expected.repeat(4, 1, 1, 1), rtol=1e-4, atol=1e-5)


def test_same_padding_stays_spatial():
    torch.manual_seed(0)
    conv = Conv2dSame(3, 4, 3, stride=2)
    x = torch.randn(1, 3, 7, 8)
    expected = conv(x)
    conv.weight = nn.Parameter(conv.weight.data[:, :, None] / 3 * torch.ones(3, 1, 1))
    run = fold(conv, FoldedConv, 1, 3, 1)
    torch.testing.assert_close(run(x.repeat(5, 1, 1, 1)), expected.repeat(5, 1, 1, 1))


def test_drop_path_drops_whole_clips():
    torch.manual_seed(0)
    drop = fold(DropPath(0.5).train(), FoldedDropPath, 64, 1, 1)
    kept = drop(torch.ones(64 * 5, 3)).unflatten(0, (64, 5)).flatten(1)
    assert ((kept == 0).all(1) | (kept == 2).all(1)).all()
    assert 16 < (kept[:, 0] == 0).sum() < 48


@pytest.mark.parametrize("kernel", [(3, 5, 5), (7, 7, 7), (2, 5, 3), (3, 3, 3), (3, 1, 3), (5, 1, 1)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("size", [(9, 7), (2, 2), (3, 4)])
@pytest.mark.parametrize("clips", [1, 2])
def test_a_depthwise_kernel_equals_conv3d_forward_and_backward(clips, size, dilation, kernel):
    torch.manual_seed(0)
    padding = [d * (k // 2) for d, k in zip(dilation, kernel[1:], strict=True)]
    conv = nn.Conv2d(6, 6, kernel[1:], padding=padding, dilation=dilation, groups=6).double()
    conv.weight = nn.Parameter(torch.randn(6, 1, *kernel, dtype=torch.float64))
    check_against_conv3d(conv, torch.randn(clips, 6, 4, *size, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("frozen", ["clip", "kernel"])
def test_a_depthwise_kernel_learns_alone(frozen, dilation):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, 3, padding=dilation, dilation=dilation, groups=6, bias=False).double()
    conv.weight = nn.Parameter(torch.randn(6, 1, 3, 3, 3, dtype=torch.float64))
    run = fold(conv, FoldedConv, 2, 3, 1)
    frames = torch.randn(8, 6, 2, 5, dtype=torch.float64, requires_grad=True)
    both = torch.autograd.grad(run(frames).square().sum(), (frames, conv.weight))
    learning = conv.weight if frozen == "clip" else frames
    (frames if frozen == "clip" else conv.weight).requires_grad_(False)
    (alone,) = torch.autograd.grad(run(frames).square().sum(), learning)
    torch.testing.assert_close(alone, both[frozen == "clip"])


@pytest.mark.parametrize("depth", [2, 3, 4, 7])
@pytest.mark.parametrize("clips", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_minimal_filtering_equals_conv3d_forward_and_backward(dilation, clips, depth):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, (3, 5), padding=(dilation, 2 * dilation), dilation=dilation).double()
    conv.weight = nn.Parameter(torch.randn(6, 4, 3, 3, 5, dtype=torch.float64))
    x = torch.randn(clips, 4, depth, 12, 13, dtype=torch.float64, requires_grad=True)
    assert clips * depth * 12 * 13 >= ways.FILTER_POSITIONS
    check_against_conv3d(conv, x)


# way: channels, groups, size of the map, strides along H and W and along D
TRIMMED = {
    Way.FILTERED: (4, 1, (12, 13), 1, 1),
    Way.SMALL: (240, 1, (3, 4), 1, 1),
    Way.IN_CHANNELS: (4, 1, (12, 14), 2, 1),
    Way.COPIED: (4, 1, (24, 26), 2, 2),
    Way.DEPTHWISE: (6, 6, (9, 7), 1, 1),
    Way.TAPS: (6, 6, (9, 7), 1, 2),
}


@pytest.mark.parametrize("kernel", [5, 7])
@pytest.mark.parametrize("way", TRIMMED)
def test_each_way_takes_a_kernel_longer_than_the_clip(way, kernel, monkeypatch):
    channels, groups, size, stride, depth_stride = TRIMMED[way]
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 6, 3, stride=stride, padding=1, groups=groups).double()
    conv.weight = nn.Parameter(torch.randn(6, channels // groups, kernel, 3, 3, dtype=torch.float64))
    clips = 2 if way is Way.COPIED else 1
    taken = []
    monkeypatch.setattr("inflate3d.inflation.convolution.way_of", lambda *a: taken.append(way_of(*a)) or taken[-1])
    x = torch.randn(clips, channels, 2, *size, dtype=torch.float64, requires_grad=True)
    check_against_conv3d(conv, x, depth_stride)
    assert taken == [way]


def test_minimal_filtering_rounds_as_finely_as_conv3d():
    torch.manual_seed(0)
    x, weight = torch.randn(8, 64, 14, 14), torch.randn(64, 64, 3, 3, 3) / 40
    got = convolve_filtered(x, weight, None, Sizes(8, 1, (1, 1), (1, 1), (1, 1), 1))
    exact = to_frames(F.conv3d(replicate(x[None].transpose(1, 2), 3, 1).double(), weight.double(), padding=(0, 1, 1)))
    assert ((got - exact).abs().max() / exact.abs().max()).item() < 5e-6


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_small_maps_equal_conv3d_forward_and_backward(kernel, stride, depth):
    torch.manual_seed(0)
    conv = nn.Conv2d(240, 3, 3, stride=stride, padding=1).double()
    conv.weight = nn.Parameter(torch.randn(3, 240, kernel, 3, 3, dtype=torch.float64))
    assert conv.weight[0].numel() >= ways.LONG_KERNEL
    check_against_conv3d(conv, torch.randn(2, 240, depth, 3, 4, dtype=torch.float64, requires_grad=True), stride)


def test_a_single_clip_with_a_stride_equals_conv3d():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1).double()
    conv.weight = nn.Parameter(torch.randn(6, 4, 3, 3, 3, dtype=torch.float64))
    check_against_conv3d(conv, torch.randn(1, 4, 7, 12, 14, dtype=torch.float64, requires_grad=True), 2)


@pytest.mark.parametrize("size", [3, 20])
def test_a_pointwise_convolution_stays_what_it_was(size):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(300, 5, 1), nn.Conv2d(5, 6, 1, bias=False), nn.Conv2d(6, 4, 1, groups=2)).double()
    x = torch.randn(4, 300, size, size, dtype=torch.float64)
    expected = net(x)
    fold_pointwise(net)
    assert [isinstance(m, FoldedPointwise) for m in net] == [True, True, False]
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("means", ["autocast", "bfloat16"])
def test_half_precision_takes_the_librarys_own_convolutions(means):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, padding=1)
    conv.weight = nn.Parameter(torch.randn(8, 8, 3, 3, 3) / 15)
    run = fold(conv, FoldedConv, 2, 3, 1)
    x = torch.randn(8, 8, 12, 12)
    expected = run(x)
    if means == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            got = run(x)
            got.float().sum().backward()
    else:
        conv.bfloat16()
        got = run(x.bfloat16())
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.05)
    assert means == "bfloat16" or conv.weight.grad.shape == conv.weight.shape


@pytest.mark.parametrize("clips", [1, 2])
@pytest.mark.parametrize(
    ("channels", "groups", "kernel", "size"), [(8, 1, 3, 14), (240, 1, 3, 3), (8, 8, 5, 9), (8, 8, 3, 9), (8, 1, 3, 4)]
)
def test_what_a_convolution_gives_may_be_changed_in_place(channels, groups, kernel, size, clips):
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups, bias=False).double()
    shape = (channels, channels // groups, 3, kernel, kernel)
    conv.weight = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    run = fold(conv, FoldedConv, clips, 3, 1)
    x = torch.randn(4, channels, size, size, dtype=torch.float64)
    gradients = [torch.autograd.grad(F.relu(run(x), inplace).sum(), conv.weight)[0] for inplace in (True, False)]
    torch.testing.assert_close(*gradients)
