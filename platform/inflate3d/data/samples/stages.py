"""From a shard's members to a Sample: crop, pad, decode, augment and normalise; one stage a kind of dataset.

A stage is a pure function of (key, members, seed): training draws crops and augmentation from the seed alone, and
evaluation draws nothing. C channel, D H W voxels along z y x, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from inflate3d.contracts import DatasetCard
from inflate3d.data.samples.augment import AugmentSpec, VideoAugment, VolumeAugment
from inflate3d.data.samples.boxes import at_least, centre, cut, frame_indices, random_start
from inflate3d.data.samples.chunked import ChunkedArray
from inflate3d.data.samples.intensity import Normalise
from inflate3d.data.samples.sample_options import SegmentationSample as SegmentationSample
from inflate3d.data.samples.sample_options import VideoSample as VideoSample
from inflate3d.data.samples.sample_options import VolumeSample as VolumeSample
from inflate3d.data.samples.sample_options import sample_options
from inflate3d.data.shards.member_check import check_members
from inflate3d.sample import Sample, Spacing, Triple
from inflate3d.seeds import generator, mix


class Stage(Protocol):
    """What turns a sample's decoded members ({"image", "mask", "video", "json"}) into a Sample."""

    def __call__(self, key: str, members: Mapping[str, Any], seed: int, out: Tensor | None = None) -> Sample:
        """Return the sample; its image lies in `out` if the last thing done to it can be done there.

        Raises InputError for members that cannot be used.
        """


def make_stage(
    card: DatasetCard,
    options: Mapping[str, Any],
    *,
    training: bool,
    augment: AugmentSpec | None = None,
    where: str = "data",
) -> Stage:
    """Return the stage for a dataset; augmentation is built in training only. InputError begins with `where`."""
    return Checked(_make_stage(card, options, training=training, augment=augment, where=where), card)


class Checked:
    """A stage that looks at the members first: InputError, never a crash, whatever a shard holds."""

    def __init__(self, stage: Stage, card: DatasetCard) -> None:
        self.stage, self.card = stage, card

    def __call__(self, key: str, members: Mapping[str, Any], seed: int, out: Tensor | None = None) -> Sample:
        """Return the stage's sample."""
        check_members(key, members, self.card)
        return self.stage(key, members, seed, out)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "stage":
            raise AttributeError(name)
        return getattr(self.stage, name)


def _make_stage(
    card: DatasetCard, options: Mapping[str, Any], *, training: bool, augment: AugmentSpec | None, where: str
) -> Stage:
    checked = sample_options(card.kind, options, where=f"{where}.sample")
    if isinstance(checked, VideoSample):
        frames = VideoAugment(augment, where=f"{where}.augment") if augment and training else None
        return VideoStage(checked, card, training=training, augment=frames)
    volumes = VolumeAugment(augment, where=f"{where}.augment") if augment and training else None
    if isinstance(checked, SegmentationSample):
        return SegmentationStage(checked, card, training=training, augment=volumes)
    return VolumeStage(checked, card, training=training, augment=volumes)


class SegmentationStage:
    """An image with a label map: patches in training, whole volumes (padded to a patch) in evaluation."""

    def __init__(
        self, options: SegmentationSample, card: DatasetCard, *, training: bool, augment: VolumeAugment | None
    ) -> None:
        self.options, self.training, self.augment = options, training, augment
        self.num_classes = len(card.classes)
        self.normalise = Normalise(card.input.intensity, len(card.input.channels), where=f"card of {card.name}")

    def __call__(self, key: str, members: Mapping[str, Any], seed: int, out: Tensor | None = None) -> Sample:
        """Return image (C, D, H, W) and target int64 (D, H, W); beyond the volume: its minimum, and label 0."""
        image, mask = members["image"], members["mask"]
        if self.training:
            size, start = self.options.patch_size, self._draw_start(mask, seed)
        else:
            size = at_least(mask.shape, self.options.patch_size)
            start = centre(mask.shape, size)
        patch = self.normalise(cut(image, start, size, fill=None), whole_CDHW=image, out_CDHW=_last(out, self.augment))
        image_CDHW, mask_DHW = torch.from_numpy(patch), torch.from_numpy(np.array(cut(mask, start, size, fill=0)))
        if self.augment is not None:
            affine = _affine(members["json"])
            image_CDHW, mask_DHW = self.augment(image_CDHW, mask_DHW, affine=affine, seed=mix(seed, "augment"))  # type: ignore[assignment]
        return Sample(key, image_CDHW, mask_DHW.long(), _spacing(members["json"]))

    def _draw_start(self, mask_DHW: np.ndarray | ChunkedArray, seed: int) -> Triple:
        draw = generator(seed, "crop")
        shape, size = mask_DHW.shape, self.options.patch_size
        if draw.random() < self.options.foreground:
            for label in draw.permutation(np.arange(1, self.num_classes)):
                voxel = _draw_voxel(mask_DHW, int(label), draw)
                if voxel is not None:
                    return random_start(shape, size, draw, holds=voxel)
        return random_start(shape, size, draw)


def _draw_voxel(mask_DHW: np.ndarray | ChunkedArray, label: int, draw: np.random.Generator) -> Any:
    """Return a voxel of a label, each as likely; None if there is none. A mask in chunks decodes one of them."""
    if isinstance(mask_DHW, ChunkedArray):
        count = mask_DHW.voxels(label)
        return mask_DHW.voxel(label, int(draw.integers(count))) if count else None
    voxels = np.flatnonzero(mask_DHW == label)
    return np.unravel_index(voxels[draw.integers(len(voxels))], mask_DHW.shape) if len(voxels) else None


class VolumeStage:
    """A whole volume with one label: cropped or padded to `size`, then interpolated to `resize`."""

    def __init__(
        self, options: VolumeSample, card: DatasetCard, *, training: bool, augment: VolumeAugment | None
    ) -> None:
        self.options, self.training, self.augment = options, training, augment
        self.normalise = Normalise(card.input.intensity, len(card.input.channels), where=f"card of {card.name}")

    def __call__(self, key: str, members: Mapping[str, Any], seed: int, out: Tensor | None = None) -> Sample:
        """Return image (C, D, H, W) and the label."""
        image = members["image"]
        shape = image.shape[1:]
        size = self.options.size or shape
        start = random_start(shape, size, generator(seed, "crop")) if self.training else centre(shape, size)
        part = cut(image, start, size, fill=None)
        image_CDHW = torch.from_numpy(self.normalise(part, whole_CDHW=image, out_CDHW=_last(out, self.augment)))
        if self.augment is not None:
            affine = _affine(members["json"])
            image_CDHW, _ = self.augment(image_CDHW, None, affine=affine, seed=mix(seed, "augment"))
        spacing = _spacing(members["json"])
        if self.options.resize is not None:
            spacing = tuple(
                s * n / m for s, n, m in zip(spacing, image_CDHW.shape[1:], self.options.resize, strict=True)
            )  # type: ignore[assignment]
            image_CDHW = interpolate(image_CDHW[None], self.options.resize, mode="trilinear")[0]
        return Sample(key, image_CDHW, int(members["json"]["label"]), spacing)


class VideoStage:
    """A clip with one label; only the frames of the clip are decoded."""

    def __init__(
        self, options: VideoSample, card: DatasetCard, *, training: bool, augment: VideoAugment | None
    ) -> None:
        self.options, self.training, self.augment = options, training, augment
        intensity = card.input.intensity
        intensity = replace(intensity, mean=options.mean or intensity.mean, std=options.std or intensity.std)
        self.normalise = Normalise(intensity, 3, where=f"card of {card.name}")
        levels = np.arange(256) / 255
        self.brighter = None if options.gamma is None else np.rint(levels**options.gamma * 255).astype(np.uint8)

    def __call__(self, key: str, members: Mapping[str, Any], seed: int, out: Tensor | None = None) -> Sample:
        """Return image (3, T, H, W) and the label; spacing_mm[0] is the seconds between two frames."""
        record, options = members["json"], self.options
        draw = generator(seed, "crop") if self.training else None
        frames = frame_indices(record["num_frames"], options.num_frames, options.frame_interval, draw)
        clip_THWC = self.decode(members["video"], frames)
        shape, size = clip_THWC.shape[1:3], (options.crop_size, options.crop_size)
        y, x = random_start(shape, size, draw) if draw is not None else centre(shape, size)
        clip_THWC = clip_THWC[:, y : y + size[0], x : x + size[1]]
        if self.brighter is not None:
            clip_THWC = self.brighter[clip_THWC]
        clip_CTHW = clip_THWC.transpose(3, 0, 1, 2)
        if self.augment is not None:
            clip_TCHW = torch.from_numpy(np.ascontiguousarray(clip_CTHW.swapaxes(0, 1)))
            clip_CTHW = self.augment(clip_TCHW, seed=mix(seed, "augment")).numpy().swapaxes(0, 1)
        seconds = options.frame_interval / record["fps"]
        image = torch.from_numpy(self.normalise(clip_CTHW, out_CDHW=_last(out, None)))
        return Sample(key, image, int(record["label"]), (seconds, 1.0, 1.0))

    def decode(self, video: Any, frames: list[int]) -> np.ndarray:
        """Return these frames, scaled to short_side."""
        from inflate3d.data.samples.frames import decode_frames  # FFmpeg, which volumes do without

        return decode_frames(video, frames, short_side=self.options.short_side)


def _last(out: Tensor | None, then: VolumeAugment | None) -> np.ndarray | None:
    """Return the memory to normalise into: `out`, unless something is done to the image after that."""
    return None if out is None or then is not None else out.numpy()


def _affine(record: Mapping[str, Any]) -> np.ndarray:
    """Return (W, H, D) index -> RAS+ millimetres; the axes themselves where there is no anatomy."""
    if record.get("affine") is not None:
        return np.asarray(record["affine"], np.float64)
    z, y, x = _spacing(record)
    return np.diag([x, y, z, 1.0])


def _spacing(record: Mapping[str, Any]) -> Spacing:
    z, y, x = record.get("spacing_mm") or (1.0, 1.0, 1.0)
    return (float(z), float(y), float(x))
