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
from torch.nn.functional import interpolate

from inflate3d.data.samples.boxes import centre, cut, frame_indices, random_start, scaled_size
from inflate3d.data.samples.intensity import Normalise
from inflate3d.data.samples.seen import Seen, measure_intensity
from inflate3d.errors import InputError
from inflate3d.models.input_contract import intensity_of

_AUGMENT = {"ct": "augment/ct.yaml", "mri": "augment/mri.yaml"}


def create_transform(model: nn.Module, is_training: bool = False) -> InputTransform:
    """Return what turns a clip or a volume into the net's input, as timm's create_transform does for images.

    `model.input_spec` says how. Volumes: the path of a file, a TorchIO image (both are brought to the contract's
    orientation and spacing by TorchIO), or an array (C, D, H, W) that has them; whole volumes of a fixed size are cut,
    padded or interpolated to it, as in training. Clips: the path of a video, of which the contract's frames are decoded
    (those in the middle; is_training: anywhere), or frames (C, D, H, W) in 0..255, which torchvision scales where the
    contract states the crop; both are cropped as in training. is_training adds the packaged augmentation for the kind
    of input, drawn from torch's generator. TorchIO, PyAV and the augmentation need the `train` extra; arrays need the
    core alone. The log warns of files and TorchIO images that are far outside of what the weights saw: size in mm,
    spacing, intensities.
    InputError for nets without a contract.
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
        # A 2D net's contract states no medium: its RGB images become frames.
        self.is_clip = spec["media"] == "video" if "media" in spec else modality == "rgb"
        self.sample: Mapping[str, Any] = spec.get("sample") or {}
        self.seen = Seen.from_dict(spec["seen"]) if "seen" in spec else None
        self._is_training = is_training
        self._augment = _augmentation(modality, is_clip=self.is_clip) if is_training else None

    def __call__(self, sample: Any) -> Tensor:
        """Return the net's input for one sample. Raises InputError for other axes or channels."""
        array = self._array(sample)
        if array.ndim != 4 or len(array) not in (1, self.num_channels):
            raise InputError(
                f"sample has shape {array.shape}; expected (C, D, H, W) with C = {self.num_channels} (or 1, repeated)"
            )
        array = np.broadcast_to(array, (self.num_channels, *array.shape[1:]))
        return self._clip(array) if self.is_clip else self._volume(array)

    def _clip(self, array_CDHW: np.ndarray) -> Tensor:
        array_CDHW = self._framed(array_CDHW)
        if self._augment is not None:
            array_CDHW = self._augment(array_CDHW)
        return torch.from_numpy(self._normalise(array_CDHW))

    def _volume(self, array_CDHW: np.ndarray) -> Tensor:
        """Cut or pad, normalise, augment and interpolate, in the order of training."""
        whole = array_CDHW
        if size := self.sample.get("size"):
            array_CDHW = cut(whole, self._start(whole.shape[1:], tuple(size)), tuple(size), fill=None)
        image = torch.from_numpy(self._normalise(array_CDHW, whole_CDHW=whole))
        if self._augment is not None:
            image = self._augment(image)
        if resize := self.sample.get("resize"):
            image = interpolate(image[None], tuple(resize), mode="trilinear")[0]
        return image

    def _start(self, shape: tuple[int, ...], size: tuple[int, ...]) -> Any:
        return random_start(shape, size, self._draw()) if self._is_training else centre(shape, size)

    @staticmethod
    def _draw() -> np.random.Generator:
        return np.random.default_rng(int(torch.randint(2**31, ()).item()))

    def _array(self, sample: Any) -> np.ndarray:
        if isinstance(sample, str | Path):
            if self.is_clip:
                return self._decoded(Path(sample))
            from inflate3d.data.raw.readers import read_volume

            spacing_mm, orientation = self.spec.get("spacing_mm"), self.spec.get("orientation")
            volume = read_volume(sample, orientation=orientation, spacing_mm=spacing_mm)
            self._compare(volume.array, volume.spacing_mm, str(sample))
            return volume.array
        if hasattr(sample, "affine") and hasattr(sample, "spatial_shape"):
            return self._placed(sample)
        return np.asarray(sample)

    def _decoded(self, path: Path) -> np.ndarray:
        """Return the contract's frames of a video (C, D, H, W)."""
        _needs("av")
        from inflate3d.data.samples.frames import decode_frames
        from inflate3d.data.samples.video_info import probe_video

        if not path.is_file():
            raise InputError(f"no file {str(path)!r}; give a video, or frames (C, D, H, W) in 0..255")
        if (num_frames := self.sample.get("num_frames")) is None:
            raise InputError(f"{path}: the contract does not say how many frames; decode them: (C, D, H, W) in 0..255")
        draw = self._draw() if self._is_training else None
        interval, info = self.sample.get("frame_interval", 1), probe_video(path)
        indices = frame_indices(info.num_frames, num_frames, interval, draw)
        frames_THWC = decode_frames(path, indices, short_side=self._short_side(), info=info)
        return frames_THWC.transpose(3, 0, 1, 2)

    def _placed(self, image: Any) -> np.ndarray:
        """Bring a TorchIO image to the contract's orientation and spacing."""
        torchio = _needs("torchio")
        if orientation := self.spec.get("orientation"):
            image = torchio.ToOrientation(orientation)(image)
        if spacing_mm := self.spec.get("spacing_mm"):
            image = torchio.Resample(tuple(reversed(spacing_mm)))(image)
        array, (w, h, d) = image.data.permute(0, 3, 2, 1).numpy(), image.spacing
        self._compare(array, (d, h, w), "the TorchIO image")
        return array

    def _compare(self, array_CDHW: np.ndarray, spacing_mm: Any, where: str) -> None:
        """Warn in the log where a volume is far outside of what the weights saw."""
        if self.seen is None:
            return
        facts = {"shape": array_CDHW.shape, "spacing_mm": spacing_mm, "intensity": measure_intensity(array_CDHW)}
        self.seen.warn(facts, self.intensity, where=where, weights=self.spec.get("domain", "the weights"))

    def _framed(self, array_CDHW: np.ndarray) -> np.ndarray:
        """Scale the shorter side, cut the square that the contract states (a random one in training), and brighten."""
        if (crop := self.sample.get("crop_size")) is not None:
            array_CDHW, size = self._scaled(array_CDHW), (array_CDHW.shape[1], crop, crop)
            array_CDHW = cut(array_CDHW, self._start(array_CDHW.shape[1:], size), size, fill=0)
        if (gamma := self.sample.get("gamma")) is not None:
            levels = np.rint((np.arange(256) / 255) ** gamma * 255).astype(np.uint8)
            array_CDHW = levels[np.clip(array_CDHW, 0, 255).astype(np.uint8)]
        return array_CDHW

    def _scaled(self, array_CDHW: np.ndarray) -> np.ndarray:
        """Bring frames to the size that decoding gives them; those that have it stay as they are."""
        from torchvision.transforms.v2.functional import resize

        size = scaled_size(*array_CDHW.shape[2:], self._short_side())  # type: ignore[call-arg]
        frames_DCHW = torch.from_numpy(array_CDHW.copy()).transpose(0, 1)
        return resize(frames_DCHW, list(size), antialias=True).transpose(0, 1).numpy()

    def _short_side(self) -> int | None:
        crop = self.sample.get("crop_size")
        return self.sample.get("short_side") or (round(crop * 8 / 7) if crop else None)


def _augmentation(modality: str, *, is_clip: bool) -> Any:
    _needs("torchio")
    from inflate3d.data.samples.augment import VideoAugment, VolumeAugment

    def seed() -> int:
        return int(torch.randint(2**31, ()).item())

    if is_clip:
        video = VideoAugment("augment/video.yaml")
        return lambda x: video(torch.from_numpy(x.copy()).transpose(0, 1), seed=seed()).transpose(0, 1).numpy()
    volume = VolumeAugment(_AUGMENT.get(modality, "augment/small_volume.yaml"))
    return lambda image: volume(image, {}, affine=np.eye(4), seed=seed())[0]


def _needs(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as fault:
        raise InputError(f"create_transform needs {fault.name!r} for this: pip install 'inflate3d[train]'") from fault
