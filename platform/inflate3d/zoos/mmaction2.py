"""MMAction2's ResNet-50 for Kinetics: I3D and SlowOnly."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from inflate3d.contracts import AbstractZoo, InputSpec, Intensity, ZooNet
from inflate3d.zoos.pytorchvideo import KINETICS

if TYPE_CHECKING:
    from torch import Tensor, nn

_STORE = "https://download.openmmlab.com/mmaction/v1.0/recognition"
_SLOWONLY = {
    "name": "slowonly",
    "kernels": [1],
    "strides": [1],
    "layers": {"layer[34].*.conv1": [3, 1]},
}
_I3D = {
    "name": "i3d_r50",
    "kernels": [1],
    "strides": [1, 2, 2, 2],
    "layers": {
        "conv1": [5, 2],
        "maxpool": [1, 2],
        "layer1.*.conv1": [3, 1],
        "layer2.pool": [2, 2],
        "layer2.0.conv2": [1, 1],
        "layer2.0.downsample.0": [1, 1],
        "layer2.[02].conv1": [3, 1],
        "layer3.[024].conv1": [3, 1],
        "layer4.1.conv1": [3, 1],
    },
}
_I3D_FILE = "i3d_imagenet-pretrained-r50_8xb8-32x2x1-100e_kinetics400-rgb"
_SLOWONLY_FILE = "slowonly_imagenet-pretrained-r50_8xb16-8x8x1-steplr-150e_kinetics400-rgb"


class MMAction2(AbstractZoo):
    """i3d_r50 (32 frames of every second) and slowonly_r50 (8 of every eighth).

    An odd number of frames before the second stage of i3d_r50: theirs drops the last one, here it is kept.
    """

    title = "Kinetics-400, from ImageNet"
    licence = "Apache-2.0"
    trained_on = KINETICS
    citation = "MMAction2 Contributors, OpenMMLab's Next Generation Video Understanding Toolbox and Benchmark, 2020"
    source = "mmaction/models/backbones/resnet3d.py and configs/recognition of github.com/open-mmlab/mmaction2"
    media = "video"
    input = InputSpec(
        ("red", "green", "blue"), intensity=Intensity(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    )
    nets: ClassVar = {
        "i3d_r50": ZooNet(
            _I3D, f"{_STORE}/i3d/{_I3D_FILE}/{_I3D_FILE}_20220812-e213c223.pth", 28043472, "resnet50", num_classes=400
        ),
        "slowonly_r50": ZooNet(
            _SLOWONLY,
            f"{_STORE}/slowonly/{_SLOWONLY_FILE}/{_SLOWONLY_FILE}_20220901-df42dc84.pth",
            32454096,
            "resnet50",
            num_classes=400,
        ),
    }

    def twin(self, name: str) -> nn.Module:
        """Return timm's ResNet-50, for I3D with a pool before its second stage."""
        from inflate3d.zoos._resnet import BOTTLENECK, pool_before_second_stage, resnet

        net = resnet(BOTTLENECK, (3, 4, 6, 3), num_classes=400)
        return pool_before_second_stage(net) if name == "i3d_r50" else net

    def convert(self, name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors under timm's keys: conv1.conv -> conv1, conv1.bn -> bn1."""
        found = {}
        for key, value in tensors.items():
            key = key.removeprefix("backbone.").replace("cls_head.fc_cls.", "fc.")
            key = key.replace("downsample.conv.", "downsample.0.").replace("downsample.bn.", "downsample.1.")
            key = re.sub(r"conv(\d)\.conv\.", r"conv\1.", key)
            found[re.sub(r"conv(\d)\.bn\.", r"bn\1.", key)] = value
        return {key: value for key, value in found.items() if not key.startswith("data_preprocessor.")}
