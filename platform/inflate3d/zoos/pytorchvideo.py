"""PyTorchVideo's ResNet-50 for Kinetics-400: the slow path of SlowFast, I3D and C2D."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from inflate3d.contracts import AbstractZoo, InputSpec, Intensity, ZooNet

if TYPE_CHECKING:
    from torch import Tensor, nn

_STORE = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics"
KINETICS = {
    "name": "kinetics400",
    "title": "Kinetics-400 human actions",
    "url": "https://github.com/cvdfoundation/kinetics-dataset",
    "licence": "CC-BY-4.0 for the lists; the videos are YouTube's users'",
    "commercial_use": None,
    "weights_may_be_published": True,
    "citation": "Kay et al., The Kinetics Human Action Video Dataset, arXiv:1705.06950, 2017",
}
"""As published: the publishers themselves pass these weights on; whether they may be sold is not known."""
_SLOW = {
    "name": "slow",
    "kernels": [1],
    "strides": [1],
    "layers": {"layer[34].*.conv1": [3, 1]},
}
_POOLED = {"layer2.pool": [2, 2], "layer2.0.conv2": [1, 1], "layer2.0.downsample.0": [1, 1]}
_C2D = {"name": "c2d", "kernels": [1], "strides": [1, 1, 1, 2], "layers": _POOLED}
_I3D = {
    "name": "i3d_r50",
    "kernels": [1],
    "strides": [1, 1, 1, 2],
    "layers": {
        "conv1": [5, 1],
        "layer1.*.conv1": [3, 1],
        "layer2.[02].conv1": [3, 1],
        "layer3.[024].conv1": [3, 1],
        "layer4.1.conv1": [3, 1],
        **_POOLED,
    },
}
_KEYS = (  # blocks.0.conv -> conv1, blocks.1.res_blocks.0.branch2.conv_a -> layer1.0.conv1
    (r"blocks\.0\.conv\.", "conv1."),
    (r"blocks\.0\.norm\.", "bn1."),
    (r"\.branch1_conv\.", ".downsample.0."),
    (r"\.branch1_norm\.", ".downsample.1."),
    (r"\.branch2\.conv_a\.", ".conv1."),
    (r"\.branch2\.norm_a\.", ".bn1."),
    (r"\.branch2\.conv_b\.", ".conv2."),
    (r"\.branch2\.norm_b\.", ".bn2."),
    (r"\.branch2\.conv_c\.", ".conv3."),
    (r"\.branch2\.norm_c\.", ".bn3."),
    (r"blocks\.\d\.proj\.", "fc."),
)


class PyTorchVideo(AbstractZoo):
    """slow_r50, i3d_r50, c2d_r50. They pool over all frames, as theirs do for the 8 that they were trained on.

    An odd number of frames: theirs drops the last one before the second stage of i3d_r50 and c2d_r50, here it is kept.
    """

    title = "Kinetics-400, 8 frames of every eighth"
    licence = "Apache-2.0"
    trained_on = KINETICS
    citation = "Fan et al., PyTorchVideo: A Deep Learning Library for Video Understanding, arXiv:2111.09887, 2021"
    source = "pytorchvideo/models/hub/resnet.py and models/resnet.py of github.com/facebookresearch/pytorchvideo"
    media = "video"
    input = InputSpec(("red", "green", "blue"), intensity=Intensity(mean=(0.45,) * 3, std=(0.225,) * 3))
    nets: ClassVar = {
        "slow_r50": ZooNet(_SLOW, f"{_STORE}/SLOW_8x8_R50.pyth", 32454096, "resnet50", num_classes=400),
        "i3d_r50": ZooNet(_I3D, f"{_STORE}/I3D_8x8_R50.pyth", 28043472, "resnet50", num_classes=400),
        "c2d_r50": ZooNet(_C2D, f"{_STORE}/C2D_8x8_R50.pyth", 24327632, "resnet50", num_classes=400),
    }

    def twin(self, name: str) -> nn.Module:
        """Return timm's ResNet-50, with a pool before its second stage but for slow_r50."""
        from inflate3d.zoos._resnet import BOTTLENECK, pool_before_second_stage, resnet

        net = resnet(BOTTLENECK, (3, 4, 6, 3), num_classes=400)
        return net if name == "slow_r50" else pool_before_second_stage(net)

    def convert(self, name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors under timm's keys; a pool counts as a block of theirs."""
        stages = (1, 2, 3, 4) if name == "slow_r50" else (1, 3, 4, 5)
        found = {}
        for key, value in tensors.items():
            for stage, block in enumerate(stages, 1):
                key = key.replace(f"blocks.{block}.res_blocks.", f"layer{stage}.")
            for pattern, own in _KEYS:
                key = re.sub(pattern, own, key)
            found[key] = value
        return found
