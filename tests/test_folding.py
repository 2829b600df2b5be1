"""Folded layers equal plain 3D layers; written against torch's own Conv3d and pools."""

import pytest
import torch
import torch.nn.functional as F
from inflate3d.inflation.convolution import FoldedConv, depth_padding
from inflate3d.inflation.layers import Clip, FoldedDropPath, FoldedPool, fold_layer
from timm.layers import Conv2dSame, DropPath, ScaledStdConv2d, StdConv2d
from torch import nn


def fold(layer, mixin, clips, kernel, stride):
    clip = Clip()
    clip.batch_size = clips
    fold_layer(layer, mixin, clip, kernel, stride)
    return layer


def replicate(x_BCDHW, kernel, stride):
    before, after = depth_padding(x_BCDHW.shape[2], kernel, stride)
    return F.pad(x_BCDHW, (0, 0, 0, 0, before, after), mode="replicate")


def to_frames(x_BCDHW):
    return x_BCDHW.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("kernel", [1, 2, 3, 7])
@pytest.mark.parametrize("groups", [1, 6])
def test_folded_conv_equals_conv3d_with_replicated_time_forward_and_backward(groups, kernel, stride, depth):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=groups).double()
    conv.weight = nn.Parameter(torch.randn(6, 6 // groups, kernel, 3, 3, dtype=torch.float64))
    fold(conv, FoldedConv, 2, kernel, stride)
    x = torch.randn(2, 6, depth, 8, 9, dtype=torch.float64, requires_grad=True)
    got = conv(to_frames(x))
    padded = replicate(x, kernel, stride)
    expected = to_frames(F.conv3d(padded, conv.weight, conv.bias, (stride, 2, 2), (0, 1, 1), 1, groups))
    torch.testing.assert_close(got, expected)
    assert got.shape[0] == 2 * -(-depth // stride)
    seed = torch.randn_like(got)
    inputs = (x, conv.weight, conv.bias)
    for a, b in zip(torch.autograd.grad(got, inputs, seed), torch.autograd.grad(expected, inputs, seed), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 2), (3, 9)])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("dilation", [1, 2])
def test_a_kernel_larger_than_the_map_is_trimmed_exactly(dilation, groups, size):
    torch.manual_seed(0)
    pad = 3 * dilation
    conv = nn.Conv2d(4, 4, 7, padding=pad, groups=groups, dilation=dilation).double()
    conv.weight = nn.Parameter(torch.randn(4, 4 // groups, 5, 7, 7, dtype=torch.float64))
    fold(conv, FoldedConv, 2, 5, 1)
    x = torch.randn(2, 4, 2, *size, dtype=torch.float64)
    expected = F.conv3d(replicate(x, 5, 1), conv.weight, conv.bias, 1, (0, pad, pad), (1, dilation, dilation), groups)
    torch.testing.assert_close(conv(to_frames(x)), to_frames(expected))


@pytest.mark.parametrize("kernel", [2, 3])
def test_folded_max_pool_equals_max_pool3d(kernel):
    x = torch.randn(2, 4, 7, 9, 9)
    pool = fold(nn.MaxPool2d(3, 2, 1), FoldedPool, 2, kernel, 2)
    expected = F.max_pool3d(replicate(x, kernel, 2), (kernel, 3, 3), (2, 2, 2), (0, 1, 1))
    torch.testing.assert_close(pool(to_frames(x)), to_frames(expected))


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
    fold(conv, FoldedConv, 1, 3, 1)
    torch.testing.assert_close(conv(x.repeat(4, 1, 1, 1)), expected.repeat(4, 1, 1, 1), rtol=1e-4, atol=1e-5)


def test_same_padding_stays_spatial():
    torch.manual_seed(0)
    conv = Conv2dSame(3, 4, 3, stride=2)
    x = torch.randn(1, 3, 7, 8)
    expected = conv(x)
    conv.weight = nn.Parameter(conv.weight.data[:, :, None] / 3 * torch.ones(3, 1, 1))
    fold(conv, FoldedConv, 1, 3, 1)
    torch.testing.assert_close(conv(x.repeat(5, 1, 1, 1)), expected.repeat(5, 1, 1, 1))


def test_drop_path_drops_whole_clips():
    torch.manual_seed(0)
    drop = fold(DropPath(0.5), FoldedDropPath, 64, 1, 1).train()
    kept = drop(torch.ones(64 * 5, 3)).unflatten(0, (64, 5)).flatten(1)
    assert ((kept == 0).all(1) | (kept == 2).all(1)).all()
    assert 16 < (kept[:, 0] == 0).sum() < 48
