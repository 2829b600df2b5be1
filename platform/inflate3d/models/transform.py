"""create_transform: the preprocessing that fits a net's input contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inflate3d.contracts import Intensity
from inflate3d.data.intensity import Normalise
from inflate3d.errors import InputError

_AUGMENT = {"rgb": "augment/video.yaml", "ct": "augment/ct.yaml", "mri": "augment/mri.yaml"}


def create_transform(model: nn.Module, is_training: bool = False) -> InputTransform:
    """Return what turns a stored clip or volume (C, D, H, W) into the net's input, as timm's create_transform does.

    A published net says how (`model.input_spec`); a net inflated from 2D takes RGB in 0..255 and its 2D net's mean and
    standard deviation. is_training adds the packaged augmentation for the kind of input (TorchIO for volumes,
    torchvision for clips; needs the `train` extra), drawn from torch's generator.
    """
    spec: Any = getattr(model, "input_spec", None)
    if spec is None or spec.get("intensity") is None:
        cfg = getattr(model, "pretrained_cfg", None) or {}
        if not {"mean", "std"} <= set(cfg):
            raise InputError(f"{type(model).__name__} has no input contract; normalise its input as its weights expect")
        channels = int(getattr(model, "in_chans_expected", 3))
        intensity = Intensity("window", (0.0, 255.0), tuple(cfg["mean"]), tuple(cfg["std"]))
        if channels != 3:
            intensity = Intensity("window", (0.0, 255.0), (_mean(cfg["mean"]),), (_mean(cfg["std"]),))
        return InputTransform(channels, intensity, "rgb" if is_training else None)
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in spec["intensity"].items()}
    return InputTransform(len(spec["channels"]), Intensity(**values), spec.get("modality") if is_training else None)


class InputTransform:
    """(C, D, H, W) array or tensor, in the units that were stored -> float32 tensor (C, D, H, W)."""

    def __init__(self, num_channels: int, intensity: Intensity, augment_for: str | None) -> None:
        self.num_channels, self.intensity = num_channels, intensity
        self._normalise = Normalise(intensity, num_channels, where="input contract")
        self._augment = _augmentation(augment_for) if augment_for else None

    def __call__(self, x_CDHW: np.ndarray | Tensor) -> Tensor:
        """Return the net's input for one sample. Raises InputError for other axes or channels."""
        array = np.asarray(x_CDHW)
        if array.ndim != 4 or len(array) not in (1, self.num_channels):
            raise InputError(
                f"sample has shape {array.shape}; expected (C, D, H, W) with C = {self.num_channels} (or 1, repeated)"
            )
        array = np.broadcast_to(array, (self.num_channels, *array.shape[1:]))
        if self._augment is not None:
            array = self._augment(array)
        return torch.from_numpy(self._normalise(array))


def _augmentation(modality: str) -> Any:
    from inflate3d.data.augment import VideoAugment, VolumeAugment

    def seed() -> int:
        return int(torch.randint(2**31, ()).item())

    spec = _AUGMENT.get(modality, "augment/small_volume.yaml")
    if modality == "rgb":
        video = VideoAugment(spec)
        return lambda x: video(torch.from_numpy(x.copy()).transpose(0, 1), seed=seed()).transpose(0, 1).numpy()
    volume = VolumeAugment(spec)
    return lambda x: volume(torch.from_numpy(x.astype(np.float32)), None, affine=np.eye(4), seed=seed())[0].numpy()


def _mean(values: Any) -> float:
    return float(sum(values) / len(values))
