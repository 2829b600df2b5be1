"""Statistics over the clip or the frame, joint attention, Linears over time: each against a formula of its own."""

import inflate3d
import pytest
import torch
import torch.nn.functional as F
from inflate3d import inflate
from inflate3d.inflation.joint import joint_attention
from inflate3d.inflation.layers import AtRate, FoldedDropPath, FoldedLinear, fold_layer, folding
from timm.layers import DropPath, GroupNorm, SEModule
from timm.layers.grn import GlobalResponseNorm
from torch import nn

CLIPS, FRAMES = 2, 5
LAYERS = [GroupNorm(16, 4), SEModule(16, rd_channels=4), GlobalResponseNorm(16, channels_last=False)]


def one_layer(layer, statistics):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 1), layer, nn.Conv2d(16, 16, 3, padding=1))
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    return net.double(), inflate(net.double(), example_size=(FRAMES, 8, 8), plan="slow", statistics=statistics)


@pytest.mark.parametrize("statistics", ["clip", "frame"])
@pytest.mark.parametrize("layer", LAYERS)
def test_statistics_pool_over_the_clip_or_the_frame(layer, statistics):
    net, inflated = one_layer(layer, statistics)
    x = torch.randn(CLIPS, 3, FRAMES, 8, 8, dtype=torch.float64)
    got = []
    inflated[1].register_forward_hook(lambda _m, _x, y: got.append(y))
    with torch.no_grad():
        inflated(x)
        maps = net[0](x.transpose(1, 2).flatten(0, 1)).unflatten(0, (CLIPS, FRAMES)).transpose(1, 2)
        if statistics == "clip":  # one image with all the clip's pixels
            expected = net[1](maps.flatten(2, 3)).unflatten(2, (FRAMES, 8))
        else:
            expected = torch.stack([net[1](maps[:, :, d]) for d in range(FRAMES)], 2)
    got = got[0].unflatten(0, (CLIPS, FRAMES)).transpose(1, 2)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)  # a response norm of clips has an eps of its own


def test_joint_attention_is_attention_over_the_tokens_of_all_frames():
    q, k, v = torch.randn(3, CLIPS * FRAMES, 2, 7, 4, dtype=torch.float64)
    got = joint_attention(q, k, v, clips=CLIPS, frames=FRAMES)

    def tokens(x):
        return x.unflatten(0, (CLIPS, FRAMES)).transpose(1, 2).flatten(2, 3)  # (B, heads, D*L, d)

    weights = torch.softmax(tokens(q) @ tokens(k).transpose(-1, -2) / 2, -1)
    expected = (weights @ tokens(v)).unflatten(2, (FRAMES, 7)).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(got, expected)


def test_a_bias_between_tokens_is_the_same_between_tokens_of_unlike_frames():
    q, k, v = torch.randn(3, CLIPS * FRAMES, 2, 7, 4, dtype=torch.float64)
    bias = torch.randn(1, 2, 7, 7, dtype=torch.float64)
    q, k, v = (x.view(CLIPS, FRAMES, 2, 7, 4)[:, :1].expand(-1, FRAMES, -1, -1, -1).flatten(0, 1) for x in (q, k, v))
    got = joint_attention(q, k, v, bias, clips=CLIPS, frames=FRAMES)
    torch.testing.assert_close(got, F.scaled_dot_product_attention(q, k, v, bias))  # frames alike: as one frame


def test_joint_attention_makes_a_vit_see_other_frames_where_taps_do_not():
    x, options = torch.randn(1, 3, 4, 160, 160), dict(plan="2d", inflation="center", num_classes=5)
    for attention, sees in (("frame", False), ("joint", True)):
        torch.manual_seed(0)
        net = inflate3d.create_model("test_vit", attention=attention, **options).eval()
        maps = []
        net.blocks[1].register_forward_hook(lambda _m, _x, y, maps=maps: maps.append(y))
        with torch.no_grad():
            net(x)
            net(torch.cat([x[:, :, :3], x[:, :, :1]], 2))
        assert (not torch.allclose(maps[0][0], maps[1][0])) is sees  # frame 0, when frame 3 changes


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_a_linear_over_time_equals_a_1d_convolution_with_replicated_ends(kernel, frames):
    layer = nn.Linear(6, 4).double()
    layer.weight = nn.Parameter(torch.randn(4, 6, kernel, dtype=torch.float64))
    fold_layer(layer, FoldedLinear, kernel)
    x = torch.randn(CLIPS * frames, 9, 6, dtype=torch.float64)
    rows = x.unflatten(0, (CLIPS, frames)).permute(0, 2, 3, 1).flatten(0, 1)  # (B*L, I, D)
    padded = F.pad(rows, ((kernel - 1) // 2, kernel // 2), mode="replicate")
    expected = F.conv1d(padded, layer.weight, layer.bias).unflatten(0, (CLIPS, 9)).permute(0, 3, 1, 2).flatten(0, 1)
    with folding(CLIPS):
        torch.testing.assert_close(layer(x), expected)


def test_stochastic_depth_drops_clips():
    layer = DropPath(0.5).train()
    fold_layer(layer, FoldedDropPath)
    with folding(64):
        kept = layer(torch.ones(64 * FRAMES, 3)).unflatten(0, (64, FRAMES))[..., 0]
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert (kept == kept[:, :1]).all()


@pytest.mark.parametrize("frames", [1, 4, 7])
def test_a_module_at_a_rate_of_its_own_runs_on_some_frames_and_holds_them(frames):
    layer = nn.Linear(3, 3, bias=False).double()
    fold_layer(layer, AtRate)
    layer.rate_in = layer.hold = 3
    x = torch.randn(CLIPS, frames, 5, 3, dtype=torch.float64)
    with folding(CLIPS, frames):
        got = layer(x.flatten(0, 1)).unflatten(0, (CLIPS, frames))
    expected = (x @ layer.weight.T)[:, [3 * (d // 3) for d in range(frames)]]
    torch.testing.assert_close(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("in_chans", [1, 4])
def test_a_net_of_rgb_alone_takes_other_channels(in_chans):
    torch.manual_seed(0)
    net = inflate3d.create_model("csatv2", plan="2d", in_chans=in_chans, num_classes=3).eval()
    torch.manual_seed(0)
    rgb = inflate3d.create_model("csatv2", plan="2d", num_classes=3).eval()
    x = torch.randn(1, in_chans, 2, 64, 64)
    if in_chans == 1:
        as_rgb = x.expand(-1, 3, -1, -1, -1)
    else:
        as_rgb = 0.75 * torch.stack([x[:, 0] + x[:, 3], x[:, 1], x[:, 2]], 1)
    with torch.no_grad():
        torch.testing.assert_close(net(x), rgb(as_rgb), rtol=1e-4, atol=1e-5)
