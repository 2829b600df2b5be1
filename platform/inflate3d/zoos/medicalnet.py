"""MedicalNet (Med3D): ResNets that segmented 8 or 23 sets of CT and MRI at once, as MONAI loads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from inflate3d.contracts import AbstractZoo, InputSpec, Intensity, ZooNet

if TYPE_CHECKING:
    from torch import Tensor, nn

_LAYERS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
_PARAMETERS = {
    10: 14355520,
    18: 32986176,
    34: 63295808,
    50: 46155072,
    101: 85201216,
    152: 117359936,
    200: 126559552,
}
_BASES = {10: "resnet18", 200: "resnet152"}  # of these two there are no 2D weights
_WITH_23 = (10, 18, 34, 50)
_PLAN = {"name": "isotropic", "strides": [1, 2, 2, 2, 2, 2]}


def _net(depth: int, ending: str = "") -> ZooNet:
    weights = f"hf-hub:TencentMedicalNet/MedicalNet-Resnet{depth}/resnet_{depth}{ending}.pth"
    return ZooNet(_PLAN, weights, _PARAMETERS[depth], _BASES.get(depth, f"resnet{depth}"), in_chans=1)


class MedicalNet(AbstractZoo):
    """resnet10 to resnet200 of 8 sets, and resnet*_23datasets. Shortcuts of 18 and 34 layers have no weights.

    As in MONAI, the last two stages stride where MedicalNet's own segmenter dilates. Its loader gave (D, H, W) as they
    stood in the files and told no spacing.
    """

    title = "segmentation of 8 or 23 public sets of CT and MRI"
    licence = "MIT"
    citation = "Chen et al., Med3D: Transfer Learning for 3D Medical Image Analysis, arXiv:1904.00625, 2019"
    source = "github.com/Tencent/MedicalNet; monai.networks.nets.resnet of MONAI 1.6.1"
    media = "volume"
    input = InputSpec(channels=("image",), intensity=Intensity("zscore", mean=(0.0,), std=(1.0,)))
    nets: ClassVar = {
        **{f"resnet{depth}": _net(depth) for depth in _LAYERS},
        **{f"resnet{depth}_23datasets": _net(depth, "_23dataset") for depth in _WITH_23},
    }

    def twin(self, name: str) -> nn.Module:
        """Return timm's ResNet, with weightless shortcuts where MedicalNet has none."""
        from inflate3d.zoos._resnet import BASIC, BOTTLENECK, resnet, shortcuts_without_weights

        depth = int(name.partition("_")[0].removeprefix("resnet"))
        net = resnet(BASIC if depth < 50 else BOTTLENECK, _LAYERS[depth], in_chans=1)
        return shortcuts_without_weights(net) if depth in (18, 34) else net

    def convert(self, name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors without the prefix of DataParallel and the segmenter's head."""
        plain = {key.removeprefix("module."): value for key, value in tensors.items()}
        return {key: value for key, value in plain.items() if not key.startswith(("conv_seg.", "fc."))}
