"""torchvision's video nets for Kinetics-400: r3d_18, mc3_18, r2plus1d_18 and s3d."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from inflate3d.contracts import AbstractZoo, InputSpec, Intensity, ZooNet
from inflate3d.zoos.pytorchvideo import KINETICS

if TYPE_CHECKING:
    from torch import nn

_STORE = "https://download.pytorch.org/models"
_R3D = {"name": "r3d", "kernels": [3], "strides": [1, 1, 2, 2, 2]}
_MC3 = {"name": "mc3", "kernels": [3, 3, 1], "strides": [1]}
_R2PLUS1D = {
    "name": "r2plus1d",
    "kernels": [1],
    "strides": [1, 1, 2, 2, 2],
    "layers": {
        "stem.3": [3, 1],
        "layer?.?.conv?.0.0": [1, 1],
        "layer?.?.conv?.0.3": [3, 1],
        "layer[234].0.conv1.0.3": [3, 2],
    },
}
_S3D = {
    "name": "s3d",
    "kernels": [1],
    "strides": [1, 2, 1, 1, 2, 2],
    "head_pool": 2,
    "layers": {
        "features.0.0.0": [1, 1],
        "features.0.1.0": [7, 2],
        "features.3.1.0": [3, 1],
        "features.*.branch[12].1.1.0": [3, 1],
        "features.*.branch3.0": [3, 1],
        "features.7": [3, 2],
        "features.13": [2, 2],
    },
}
_WINDOWS = "its attention joins windows of frames, and folding holds attention within a frame or over the whole clip"
_POOLED = "its attention pools queries, keys and values over frames, which folding has no place for"


class Torchvision(AbstractZoo):
    """r3d_18, mc3_18, r2plus1d_18, and s3d, whose mean over windows of 7 x 7 pixels is that of frames of 224 x 224."""

    title = "Kinetics-400"
    licence = "BSD-3-Clause"
    trained_on = KINETICS
    citation = (
        "Tran et al., A Closer Look at Spatiotemporal Convolutions, arXiv:1711.11248; s3d: Xie et al., 1712.04851"
    )
    source = "torchvision.models.video of torchvision 0.29.1"
    media = "video"
    input = InputSpec(
        ("red", "green", "blue"),
        intensity=Intensity(mean=(0.43216, 0.394666, 0.37645), std=(0.22803, 0.22145, 0.216989)),
    )
    nets: ClassVar = {
        "r3d_18": ZooNet(_R3D, f"{_STORE}/r3d_18-b3b3357e.pth", 33371472, "resnet18", (2, 4, 8, 16), num_classes=400),
        "mc3_18": ZooNet(_MC3, f"{_STORE}/mc3_18-a90a0ba3.pth", 11695440, "resnet18", (2, 4, 8, 16), num_classes=400),
        "r2plus1d_18": ZooNet(
            _R2PLUS1D, f"{_STORE}/r2plus1d_18-91a641e6.pth", 31505325, "resnet18", (2, 4, 8, 16), num_classes=400
        ),
        "s3d": ZooNet(_S3D, f"{_STORE}/s3d-d76dad2f.pth", 8320048, "torchvision/googlenet", num_classes=400),
    }
    refused: ClassVar = {
        **dict.fromkeys(("swin3d_t", "swin3d_s", "swin3d_b"), _WINDOWS),
        **dict.fromkeys(("mvit_v1_b", "mvit_v2_s"), _POOLED),
    }

    def twin(self, name: str) -> nn.Module:
        """Return torchvision's own net with every 3D layer as the 2D one of its H and W."""
        from inflate3d.zoos._flat import ConvTrunk, flat

        net = flat(name)
        return ConvTrunk(net, 1024) if name == "s3d" else net
