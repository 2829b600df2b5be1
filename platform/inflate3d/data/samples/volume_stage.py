"""From a volume's members to a Sample: cut, pad, augment, normalise and interpolate, masks along with the image."""

# C channel, D H W voxels along z y x.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from inflate3d.contracts import DatasetCard
from inflate3d.data.samples.augment import AugmentSpec, VolumeAugment
from inflate3d.data.samples.boxes import at_least, centre, cut, random_start
from inflate3d.data.samples.chunked import ChunkedArray
from inflate3d.data.samples.intensity import Normalise
from inflate3d.data.samples.options import VolumeSample
from inflate3d.data.samples.record import stored_value
from inflate3d.sample import IMAGE, Sample, Spacing, Triple
from inflate3d.seeds import generator, mix


class VolumeStage:
    """A patch or a whole volume with its targets; draws come from the seed alone, evaluation draws nothing."""

    def __init__(
        self,
        options: VolumeSample,
        card: DatasetCard,
        *,
        training: bool,
        augment: AugmentSpec | None = None,
        where: str = "data",
    ) -> None:
        self.options, self.training, self.targets = options, training, dict(card.targets)
        self.augment = VolumeAugment(augment, where=f"{where}.augment") if augment and training else None
        self.normalise = Normalise(card.input.intensity, len(card.input.channels), where=f"card of {card.name}")
        self.masks = [name for name, target in card.targets.items() if target.per_voxel]

    def __call__(self, key: str, members: Mapping[str, Any], seed: int, out: Tensor | None = None) -> Sample:
        """Return image (C, D, H, W) and the targets; beyond the volume: its minimum, and label 0."""
        image, record = members["image"], members["json"]
        size, start = self._box(image.shape[1:], members, seed)
        memory = None if out is None or self.augment is not None else out.numpy()
        part = self.normalise(cut(image, start, size, fill=None), whole_CDHW=image, out_CDHW=memory)
        image_CDHW = torch.from_numpy(part)
        masks = {name: torch.from_numpy(np.array(cut(members[name], start, size, fill=0))) for name in self.masks}
        if self.augment is not None:
            image_CDHW, masks = self.augment(image_CDHW, masks, affine=_affine(record), seed=mix(seed, "augment"))
        spacing_mm = _spacing(record)
        if self.options.resize is not None:
            image_CDHW, masks, spacing_mm = _resized(image_CDHW, masks, spacing_mm, self.options.resize)
        targets = {
            name: target.tensor(masks[name] if name in masks else stored_value(record, name))
            for name, target in self.targets.items()
        }
        return Sample(key, {IMAGE: image_CDHW}, targets, spacing_mm)

    def _box(self, shape: Any, members: Mapping[str, Any], seed: int) -> tuple[Triple, Triple]:
        """Return the size of what is cut and where it begins."""
        patch = self.options.patch_size
        if patch is None:
            size = self.options.size or shape
            return size, random_start(shape, size, generator(seed, "crop")) if self.training else centre(shape, size)
        if self.training:
            return patch, self._draw_patch(shape, patch, members, seed)
        size = at_least(shape, patch)
        return size, centre(shape, size)

    def _draw_patch(self, shape: Any, size: Triple, members: Mapping[str, Any], seed: int) -> Triple:
        draw = generator(seed, "crop")
        if self.masks and draw.random() < self.options.foreground:
            mask, target = members[self.masks[0]], self.targets[self.masks[0]]
            sought = {label for labels in target.scored.values() for label in labels}
            for label in draw.permutation(np.arange(1, len(target.names))):
                if label not in sought:
                    continue
                voxel = _draw_voxel(mask, int(label), draw)
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


def _resized(
    image_CDHW: Tensor, masks: dict[str, Tensor], spacing_mm: Spacing, size: Triple
) -> tuple[Tensor, dict[str, Tensor], Spacing]:
    """Interpolate the image trilinearly and masks to the nearest voxel; the spacing follows."""
    z, y, x = (s * n / m for s, n, m in zip(spacing_mm, image_CDHW.shape[1:], size, strict=True))
    image_CDHW = interpolate(image_CDHW[None], size, mode="trilinear")[0]
    masks = {
        name: interpolate(mask[None, None].float(), size, mode="nearest-exact")[0, 0].to(mask.dtype)
        for name, mask in masks.items()
    }
    return image_CDHW, masks, (z, y, x)


def _affine(record: Mapping[str, Any]) -> np.ndarray:
    """Return (W, H, D) index -> RAS+ millimetres; the axes themselves where there is no anatomy."""
    if record.get("affine") is not None:
        return np.asarray(record["affine"], np.float64)
    z, y, x = _spacing(record)
    return np.diag([x, y, z, 1.0])


def _spacing(record: Mapping[str, Any]) -> Spacing:
    z, y, x = record.get("spacing_mm") or (1.0, 1.0, 1.0)
    return (float(z), float(y), float(x))
