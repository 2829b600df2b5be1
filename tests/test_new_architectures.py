"""A 2D net that nobody has seen before inflates by the same mechanism, or the error names the layer that it cannot."""

import pytest
import torch
import torch.nn.functional as F
from inflate3d import inflate
from inflate3d.inflation import InflationError
from nightly import slow_but
from torch import nn


class ToyBlurPool(nn.Module):
    """A pool of its own kind: it slices, so that no module of torch's strides."""

    def forward(self, x):
        x = F.pad(x, (1, 1, 1, 1), mode="replicate")
        return (x[..., :-2:2, :-2:2] + x[..., 1:-1:2, 1:-1:2] + x[..., 2::2, 2::2]) / 3


class ToyUnpacked(nn.Module):
    """Its forward unpacks the shape and uses the batch size that it saw first, as many transformers do."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.blocks = nn.Sequential(ToyBlock(), ToyBlock())
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        batch, _channels, height, width = x.shape
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(batch, -1, -1), x.reshape(batch, height * width // 16, 16)], 1)
        return self.head(self.blocks(x)[:, 0])


class ToyAttention(nn.Module):
    """Attention written out by hand, with heads folded into the batch."""

    def __init__(self, dim=16, heads=2):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).flatten(1, 2)
        weights = torch.softmax(q @ k.transpose(1, 2) * (dim // self.heads) ** -0.5, -1)
        y = (weights @ v).reshape(batch, self.heads, tokens, -1).transpose(1, 2).reshape(batch, tokens, dim)
        return self.proj(y)


class ToyBlock(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.norm, self.attention, self.mlp = nn.LayerNorm(dim), ToyAttention(dim), nn.Linear(dim, dim)

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        return x + F.gelu(self.mlp(x))


class ToyPooled(nn.Module):
    """Convolutions around an unusual pool, and squeeze-and-excitation that no library knows."""

    def __init__(self):
        super().__init__()
        self.conv1, self.pool, self.conv2 = nn.Conv2d(3, 16, 3, 2, 1), ToyBlurPool(), nn.Conv2d(16, 16, 3, 1, 1)
        self.gate, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 5)

    def forward(self, x):
        x = self.conv2(self.pool(F.relu(self.conv1(x))))
        x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("taps", slow_but(["overshoot", "mean", "center"], 1))
@pytest.mark.parametrize("plan", ["isotropic", {"name": "kernels alone"}])
@pytest.mark.parametrize("cls", [ToyUnpacked, ToyPooled])
def test_a_made_up_net_is_exact_and_looks_across_frames(cls, plan, taps):
    torch.manual_seed(0)
    net = cls().double().eval()
    inflated = inflate(net, example_size=(9, 32, 48), inflation=taps, plan=plan).eval()
    image, clip = torch.randn(2, 3, 32, 48, dtype=torch.float64), torch.randn(2, 3, 9, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(inflated(image.unsqueeze(2).expand(-1, -1, 9, -1, -1)), net(image))
        if taps != "center":  # center taps look at their own frame until they are trained
            order = torch.tensor([1, 3, 5, 7, 0, 2, 4, 6, 8])
            assert (inflated(clip[:, :, order]) - inflated(clip)).abs().max() > 1e-6


def test_a_stride_in_a_pool_of_ones_own_shortens_d():
    inflated = inflate(ToyPooled().eval(), example_size=(9, 32, 48), plan="isotropic").eval()
    seen = []
    inflated.conv2.register_forward_hook(lambda _m, x, _y: seen.append(len(x[0])))
    inflated(torch.randn(2, 3, 9, 32, 48))
    assert seen == [2 * 3]  # 9 frames, halved twice


class ToyFlowPool(nn.Module):
    """A layer that takes its neighbours in the batch for what they are not."""

    def forward(self, x):
        return x + x.roll(1, 0)


def test_a_layer_that_mixes_the_batch_is_named():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), ToyFlowPool(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InflationError, match=r"layer '1' \(ToyFlowPool\) breaks the static-clip invariant"):
        inflate(net, example_size=(8, 32, 32), plan="isotropic")


class ToyDeformable(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, x):
        return super().forward(x.tanh())


def test_a_convolution_of_ones_own_is_named():
    with pytest.raises(InflationError, match="layer '0' is a ToyDeformable, a Conv2d with a forward of its own"):
        inflate(nn.Sequential(ToyDeformable(3, 4, 3, padding=1)), example_size=(8, 32, 32))


class ToyFixedRows(nn.Module):
    """Relies on a batch of two."""

    def __init__(self):
        super().__init__()
        self.conv, self.rows = nn.Conv2d(3, 4, 3, padding=1), nn.Parameter(torch.randn(2, 4, 1, 1))

    def forward(self, x):
        return (self.conv(x) + self.rows).mean((2, 3))


def test_a_net_that_knows_its_batch_size_is_refused():
    with pytest.raises(InflationError, match="soon after layer 'conv'"):
        inflate(ToyFixedRows(), example_size=(8, 32, 32), plan="isotropic")
