"""create_transform: the preprocessing that fits a net's input contract."""

# C channel, D H W voxels along z y x (frames along D for clips); TorchIO's axes are (C, W, H, D).

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inflate3d.data.intensity import Normalise
from inflate3d.errors import InputError
from inflate3d.models.input_contract import intensity_of

_AUGMENT = {"rgb": "augment/video.yaml", "ct": "augment/ct.yaml", "mri": "augment/mri.yaml"}


def create_transform(model: nn.Module, is_training: bool = False) -> InputTransform:
    """Return what turns a clip or a volume into the net's input, as timm's create_transform does for images.

    `model.input_spec` says how. Volumes: the path of a file, a TorchIO image (both are brought to the contract's
    orientation and spacing by TorchIO), or an array (C, D, H, W) that has them. Clips: frames (C, D, H, W) in 0..255;
    where the contract states the crop, they are scaled and cropped by torchvision. is_training adds the packaged
    augmentation for the kind of input, drawn from torch's generator. TorchIO and the augmentation need the `train`
    extra; arrays need the core alone. InputError for nets without a contract.
    """
    spec: Mapping[str, Any] | None = getattr(model, "input_spec", None)
    if spec is None or intensity_of(spec) is None:
        raise InputError(f"{type(model).__name__} has no input contract; normalise its input as its weights expect")
    return InputTransform(spec, is_training=is_training)


class InputTransform:
    """A file, a TorchIO image, an array or a tensor, in the units that were stored -> float32 tensor (C, D, H, W)."""

    def __init__(self, spec: Mapping[str, Any], *, is_training: bool = False) -> None:
        """spec: a net's input_spec. InputError names the extra that is_training needs, where it is missing."""
        intensity = intensity_of(spec)
        assert intensity is not None
        self.spec, self.num_channels, self.intensity = dict(spec), len(spec["channels"]), intensity
        self._normalise = Normalise(intensity, self.num_channels, where="input contract")
        modality = spec.get("modality", "rgb")
        self.is_clip = modality == "rgb"
        self._is_training = is_training
        self._augment = _augmentation(modality) if is_training else None

    def __call__(self, sample: Any) -> Tensor:
        """Return the net's input for one sample. Raises InputError for other axes or channels."""
        array = self._array(sample)
        if array.ndim != 4 or len(array) not in (1, self.num_channels):
            raise InputError(
                f"sample has shape {array.shape}; expected (C, D, H, W) with C = {self.num_channels} (or 1, repeated)"
            )
        array = np.broadcast_to(array, (self.num_channels, *array.shape[1:]))
        if self.is_clip:
            array = self._framed(array)
        if self._augment is not None:
            array = self._augment(array)
        return torch.from_numpy(self._normalise(array))

    def _array(self, sample: Any) -> np.ndarray:
        if isinstance(sample, str | Path):
            if self.is_clip:
                raise InputError("decode the video first: a clip is given as frames (C, D, H, W) in 0..255")
            sample = _needs("torchio").ScalarImage(sample)
        if hasattr(sample, "affine") and hasattr(sample, "spatial_shape"):
            return self._placed(sample)
        return np.asarray(sample)

    def _placed(self, image: Any) -> np.ndarray:
        """Bring a TorchIO image to the contract's orientation and spacing."""
        torchio = _needs("torchio")
        if orientation := self.spec.get("orientation"):
            image = torchio.ToOrientation(orientation)(image)
        if spacing_mm := self.spec.get("spacing_mm"):
            image = torchio.Resample(tuple(reversed(spacing_mm)))(image)
        return image.data.permute(0, 3, 2, 1).numpy()

    def _framed(self, array_CDHW: np.ndarray) -> np.ndarray:
        """Scale the shorter side and cut the square that the contract states; a random one in training."""
        crop = (self.spec.get("sample") or {}).get("crop_size")
        if crop is None:
            return array_CDHW
        from torchvision.transforms import v2

        short = self.spec["sample"].get("short_side") or round(crop * 8 / 7)
        cut = v2.RandomCrop(crop) if self._is_training else v2.CenterCrop(crop)
        frames_DCHW = torch.from_numpy(array_CDHW.copy()).transpose(0, 1)
        return cut(v2.Resize(short, antialias=True)(frames_DCHW)).transpose(0, 1).numpy()


def _augmentation(modality: str) -> Any:
    _needs("torchio")
    from inflate3d.data.augment import VideoAugment, VolumeAugment

    def seed() -> int:
        return int(torch.randint(2**31, ()).item())

    spec = _AUGMENT.get(modality, "augment/small_volume.yaml")
    if modality == "rgb":
        video = VideoAugment(spec)
        return lambda x: video(torch.from_numpy(x.copy()).transpose(0, 1), seed=seed()).transpose(0, 1).numpy()
    volume = VolumeAugment(spec)
    return lambda x: volume(torch.from_numpy(x.astype(np.float32)), None, affine=np.eye(4), seed=seed())[0].numpy()


def _needs(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as fault:
        raise InputError(f"create_transform needs {fault.name!r} for this: pip install 'inflate3d[train]'") from fault
