"""3D nets of zoos in plain torch, written from their definitions, under their publishers' names of tensors.

What the installed packages have (MONAI's and torchvision's nets) is compared with directly.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Names(NamedTuple):
    """Where a publisher keeps the parts of a bottleneck ResNet: (convolution, norm) each, and the classifier."""

    stem: tuple[str, str]
    block: str  # of stage {s} (from 1) and number {b}
    parts: tuple[tuple[str, str], ...]
    shortcut: tuple[str, str]
    head: str = ""


def _thrice(convolution: str, norm: str) -> tuple[tuple[str, str], ...]:
    return tuple((convolution.format(i), norm.format(i)) for i in "123")


PLAIN = Names(("conv1", "bn1"), "layer{s}.{b}", _thrice("conv{}", "bn{}"), ("downsample.0", "downsample.1"))
OPENMMLAB = Names(
    ("backbone.conv1.conv", "backbone.conv1.bn"),
    "backbone.layer{s}.{b}",
    _thrice("conv{}.conv", "conv{}.bn"),
    ("downsample.conv", "downsample.bn"),
    "cls_head.fc_cls",
)
PYTORCHVIDEO = Names(
    ("blocks.0.conv", "blocks.0.norm"),
    "blocks.{s}.res_blocks.{b}",
    tuple((f"branch2.conv_{i}", f"branch2.norm_{i}") for i in "abc"),
    ("branch1_conv", "branch1_norm"),
    "blocks.{last}.proj",
)


class Bottlenecks(nn.Module):
    """A bottleneck ResNet: stem (kD, kH, kW), stride; which blocks reach 3 frames along D, and how (`inflated`).

    inflated: a set of (stage, block); "all": their 3x3 convolutions are 3x3x3 and stride D too; otherwise their first
    1x1 is 3x1x1. pool: (kernel, stride) along D of the stem's max pool. pools: whether two frames become one, by
    maxima, before the second stage.
    """

    def __init__(self, names: Names, layers: tuple[int, ...], stem: Any, inflated: Any, pool: Any, pools: bool) -> None:
        super().__init__()
        self.names, self.layers, self.inflated, self.pool, self.pools = names, layers, inflated, pool, pools
        self.paths: dict[str, str] = {}
        kernel, self.stem_stride, channels = stem
        self._put(names.stem, nn.Conv3d(channels, 64, kernel, self.stem_stride, [k // 2 for k in kernel], bias=False))
        width = 64
        for stage, count in enumerate(layers):
            for block in range(count):
                self._put_block(self.block(stage, block), stage, width, 2 if stage and not block else 1, block)
                width = 256 * 2**stage
        if names.head:
            self._add(names.head.format(last=5 + pools), nn.Linear(width, 400))

    def block(self, stage: int, block: int) -> str:
        """Where a block lies; a pool before the second stage counts as one of PyTorchVideo's."""
        return self.names.block.format(s=stage + 1 + (self.pools and stage > 0 and self.names is PYTORCHVIDEO), b=block)

    def _put_block(self, path: str, stage: int, width: int, stride: int, block: int) -> None:
        inner, isotropic = 64 * 2**stage, self.inflated == "all"
        first = 3 if not isotropic and (stage, block) in self.inflated else 1
        step = (stride, stride, stride) if isotropic else (1, stride, stride)
        depth = 3 if isotropic else 1
        made = (
            nn.Conv3d(width, inner, (first, 1, 1), padding=(first // 2, 0, 0), bias=False),
            nn.Conv3d(inner, inner, (depth, 3, 3), step, (depth // 2, 1, 1), bias=False),
            nn.Conv3d(inner, 4 * inner, 1, bias=False),
        )
        for (conv, norm), layer in zip(self.names.parts, made, strict=True):
            self._put((f"{path}.{conv}", f"{path}.{norm}"), layer)
        if not block:
            names = tuple(f"{path}.{name}" for name in self.names.shortcut)
            self._put(names, nn.Conv3d(width, 4 * inner, 1, step, bias=False))

    def _put(self, names: Any, convolution: nn.Conv3d) -> None:
        self._add(names[0], convolution)
        self._add(names[1], nn.BatchNorm3d(convolution.out_channels))

    def _add(self, path: str, layer: nn.Module) -> None:
        *parents, name = path.split(".")
        owner: nn.Module = self
        for parent in parents:
            if not hasattr(owner, parent):
                owner.add_module(parent, nn.Module())
            owner = getattr(owner, parent)
        owner.add_module(name, layer)

    def _run(self, x: Tensor, names: Any) -> Tensor:
        return self.get_submodule(names[1])(self.get_submodule(names[0])(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, or the mean of the last map where there is no classifier."""
        kernel, stride = self.pool
        x = F.relu(self._run(x, self.names.stem))
        x = F.max_pool3d(x, (kernel, 3, 3), (stride, 2, 2), (kernel // 2, 1, 1))
        for stage, count in enumerate(self.layers):
            if stage == 1 and self.pools:
                x = F.max_pool3d(x, (2, 1, 1), (2, 1, 1))
            for block in range(count):
                path = self.block(stage, block)
                first, second, third = ([f"{path}.{n}" for n in part] for part in self.names.parts)
                rest = x if block else self._run(x, [f"{path}.{n}" for n in self.names.shortcut])
                x = F.relu(self._run(F.relu(self._run(F.relu(self._run(x, first)), second)), third) + rest)
        x = x.mean((2, 3, 4))
        return self.get_submodule(self.names.head.format(last=5 + self.pools))(x) if self.names.head else x


SLOW = {(stage, block) for stage in (2, 3) for block in range(6)}
NONLOCAL = {*((0, b) for b in range(3)), (1, 0), (1, 2), (2, 0), (2, 2), (2, 4), (3, 1)}
"""The blocks of I3D's ResNet-50 that reach 3 frames (arXiv:1711.07971): all of the first stage, then every other."""


def reference(name: str) -> nn.Module:
    """Return the 3D net of a zoo's name, with random weights."""
    fifty, stem = (3, 4, 6, 3), ((1, 7, 7), (1, 2, 2), 3)
    made: dict[str, Any] = {
        "pytorchvideo/slow_r50": lambda: Bottlenecks(PYTORCHVIDEO, fifty, stem, SLOW, (1, 1), False),
        "pytorchvideo/c2d_r50": lambda: Bottlenecks(PYTORCHVIDEO, fifty, stem, set(), (1, 1), True),
        "pytorchvideo/i3d_r50": lambda: Bottlenecks(
            PYTORCHVIDEO, fifty, ((5, 7, 7), (1, 2, 2), 3), NONLOCAL, (1, 1), True
        ),
        "mmaction2/slowonly_r50": lambda: Bottlenecks(OPENMMLAB, fifty, stem, SLOW, (1, 1), False),
        "mmaction2/i3d_r50": lambda: Bottlenecks(OPENMMLAB, fifty, ((5, 7, 7), (2, 2, 2), 3), NONLOCAL, (1, 2), True),
        "merlin/resnet152": lambda: Bottlenecks(PLAIN, (3, 8, 36, 3), ((3, 7, 7), (1, 2, 2), 3), "all", (3, 2), False),
        "i3d/rgb": Inception,
    }
    return made[name]()


_MIXED = {
    "3b": (192, 64, 96, 128, 16, 32, 32),
    "3c": (256, 128, 128, 192, 32, 96, 64),
    "4b": (480, 192, 96, 208, 16, 48, 64),
    "4c": (512, 160, 112, 224, 24, 64, 64),
    "4d": (512, 128, 128, 256, 24, 64, 64),
    "4e": (512, 112, 144, 288, 32, 64, 64),
    "4f": (528, 256, 160, 320, 32, 128, 128),
    "5b": (832, 256, 160, 320, 32, 128, 128),
    "5c": (832, 384, 192, 384, 48, 128, 128),
}
_POOLS = {"3b": ((1, 3, 3), (1, 2, 2)), "4b": ((3, 3, 3), (2, 2, 2)), "5b": ((2, 2, 2), (2, 2, 2))}


class Inception(nn.Module):
    """Inception-v1 over clips (arXiv:1705.07750), padded as TensorFlow's SAME; means of windows of 2 frames."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = _Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = _Unit(64, 192, 3)
        for name, (into, b0, b1a, b1b, b2a, b2b, b3b) in _MIXED.items():
            mixed = nn.Module()
            widths = {"b0": (into, b0), "b1a": (into, b1a), "b1b": (b1a, b1b), "b2a": (into, b2a), "b2b": (b2a, b2b)}
            for branch, (one, other) in {**widths, "b3b": (into, b3b)}.items():
                mixed.add_module(branch, _Unit(one, other, 3 if branch in ("b1b", "b2b") else 1))
            self.add_module(f"Mixed_{name}", mixed)
        self.logits = nn.Module()
        self.logits.conv3d = nn.Conv3d(1024, 400, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, D, H, W) -> logits (B, 400)."""
        x = same_pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))
        for name in _MIXED:
            mixed: Any = getattr(self, f"Mixed_{name}")
            x = same_pool(x, *_POOLS[name]) if name in _POOLS else x
            pooled = same_pool(x, (3, 3, 3), (1, 1, 1))
            branches = (mixed.b0(x), mixed.b1b(mixed.b1a(x)), mixed.b2b(mixed.b2a(x)), mixed.b3b(pooled))
            x = torch.cat(branches, 1)
        x = F.avg_pool3d(x.mean((3, 4), keepdim=True), (2, 1, 1), 1)
        return self.logits.conv3d(x).mean((2, 3, 4))


class _Unit(nn.Module):
    def __init__(self, into: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(into, out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv3d(pad_same(x, self.conv3d.kernel_size, self.conv3d.stride))))


def same_pool(x: Tensor, kernel: Any, stride: Any) -> Tensor:
    """A max pool of what is not negative, so that zeros past the ends change nothing."""
    return F.max_pool3d(pad_same(x, kernel, stride), kernel, stride)


def pad_same(x: Tensor, kernel: Any, stride: Any) -> Tensor:
    """Zeros as TensorFlow's SAME: out = ceil(size / stride), what is missing shared, the larger half at the end."""
    sizes = []
    for size, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
        missing = max((math.ceil(size / s) - 1) * s + k - size, 0)
        sizes += [missing // 2, missing - missing // 2]
    return F.pad(x, sizes)
