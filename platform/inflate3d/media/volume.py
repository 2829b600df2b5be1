"""Volumes: arrays (C, D, H, W) with a spacing, in NIfTI, NRRD, MHA, .npy or DICOM series."""

# C channel, D H W voxels along z y x.

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inflate3d.contracts import AbstractMedium, DatasetCard, Plane, RawSample, Stage
from inflate3d.data.raw.files import stem
from inflate3d.data.raw.readers import SUFFIXES
from inflate3d.data.samples.options import VolumeSample
from inflate3d.data.samples.record import check_place
from inflate3d.data.samples.seen import measure_intensity
from inflate3d.data.shards.members import DTYPES
from inflate3d.errors import InputError
from inflate3d.sample import Spacing

_CHANNEL = re.compile(r"(.+)_\d{4}")
_MOST_VOXELS = 2**33


class Volume(AbstractMedium):
    """Patches or whole volumes; masks lie on the image's grid."""

    options = VolumeSample
    suffixes = SUFFIXES
    array_members = ("image",)
    fields = ("spacing_mm", "affine")

    def encode(self, raw: RawSample, card: DatasetCard) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the image as an array, and its shape, spacing, affine and intensities."""
        image = _checked_image(raw.image, card)
        facts = {
            "shape": list(image.shape),
            "spacing_mm": _checked_spacing(raw, card),
            "affine": _checked_affine(raw, card),
            "intensity": measure_intensity(image),
        }
        return {"image": image}, facts

    def check(self, members: Mapping[str, Any], record: Mapping[str, Any], card: DatasetCard) -> None:
        """Refuse another shape, type or number of channels, and a place that is no place."""
        check_place(record)
        image, types = members.get("image"), [str(dtype) for dtype in DTYPES]
        if image is None or image.ndim != 4 or image.dtype not in types or not 0 < image.size < _MOST_VOXELS:
            got = "none" if image is None else f"{image.dtype} {tuple(image.shape)}"
            raise InputError(f"image is {got}; expected (C, D, H, W) of {', '.join(types)}")
        if len(image) != len(card.input.channels):
            raise InputError(f"{len(image)} channels; the card states {list(card.input.channels)}")

    def stage(
        self, options: VolumeSample, card: DatasetCard, *, training: bool, augment: Any = None, where: str = "data"
    ) -> Stage:
        """Return the stage of patches or whole volumes."""
        from inflate3d.data.samples.volume_stage import VolumeStage

        return VolumeStage(options, card, training=training, augment=augment, where=where)

    def files_of(self, files: Sequence[Path], card: DatasetCard) -> list[tuple[str, tuple[Path, ...]]]:
        """Return a case a file; nnU-Net's CASE_0000, CASE_0001, ... are one case, of as many channels as the card has.

        With one channel, files that do not all end in _0000 are cases by their whole names.
        """
        found = [(stem(file, self.suffixes), file) for file in files]
        matches = [_CHANNEL.fullmatch(key) for key, _ in found]
        channels = len(card.input.channels)
        if not all(matches) or (channels == 1 and not all(key.endswith("_0000") for key, _ in found)):
            return [(key, (file,)) for key, file in found]
        parts: dict[str, set[Path]] = {}
        for (_, file), match in zip(found, matches, strict=True):
            assert match is not None
            suffix = file.name[len(match[0]) :]
            # All that there should be, so that reading names the one that is missing.
            wanted = {file.with_name(f"{match[1]}_{i:04d}{suffix}") for i in range(channels)}
            parts.setdefault(match[1], set()).update(wanted | {file})
        return [(key, tuple(sorted(paths))) for key, paths in parts.items()]

    def has_folders(self, folder: Path) -> bool:
        """Whether the folder, or one below it, holds DICOM files."""
        from inflate3d.data.raw.dicom_study import holds_dicom_below

        return holds_dicom_below(folder)

    def folders_of(self, folder: Path) -> list[tuple[str, tuple[Path, ...]]]:
        """Return a case a DICOM series."""
        from inflate3d.data.raw.dicom_study import series_below, series_keys

        paths = series_below(folder)
        return [(key, (path,)) for key, path in zip(series_keys(paths, folder), paths, strict=True)]

    def read(self, files: Sequence[Path], card: DatasetCard, *, where: str) -> RawSample:
        """Read the files of the channels, in the card's orientation and spacing."""
        from inflate3d.data.raw.volumes import read_volume_case

        return read_volume_case(files, card, where=where)

    def planes(
        self,
        image_CDHW: np.ndarray,
        count: int,
        *,
        spacing_mm: Spacing,
        mask_DHW: np.ndarray | None = None,
        maxima: bool = True,
    ) -> list[Plane]:
        """Return the slices along D, H and W that hold most of the mask; without one the middle ones, with maxima."""
        planes = []
        for axis, name in enumerate("DHW"):
            others = tuple(i for i in range(3) if i != axis)
            height, width = (spacing_mm[i] for i in others)
            aspect = height / width if width > 0 and height > 0 else 1.0
            if mask_DHW is not None and mask_DHW.any():
                index = int((mask_DHW > 0).sum(axis=others).argmax())
                planes.append(Plane(f"{name} = {index}", axis, index, aspect))
                continue
            planes.append(Plane(f"middle of {name}", axis, image_CDHW.shape[axis + 1] // 2, aspect))
            if maxima and image_CDHW.shape[axis + 1] > 1:
                planes.append(Plane(f"maximum over {name}", axis, None, aspect))
        return planes[:count]

    def raw_image(self, raw: RawSample, count: int) -> np.ndarray:
        """Return the image."""
        assert raw.image is not None, "a raw sample of a volume holds an image"
        return raw.image


def _checked_image(image: np.ndarray | None, card: DatasetCard) -> np.ndarray:
    if image is None:
        raise InputError("has no image; volumes need one")
    if image.ndim != 4 or image.size == 0:
        raise InputError(f"image is {image.ndim}-D {image.shape}; expected (C, D, H, W)")
    if image.dtype not in DTYPES:
        raise InputError(f"image is {image.dtype}; expected one of {', '.join(map(str, DTYPES))}")
    if len(image) != len(card.input.channels):
        raise InputError(f"image has {len(image)} channels; the card states {list(card.input.channels)}")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise InputError("image holds voxels that are NaN or infinite")
    return image


def _checked_spacing(raw: RawSample, card: DatasetCard) -> list[float]:
    stated = card.input.spacing_mm
    spacing = [float(s) for s in raw.spacing_mm or stated or (1.0, 1.0, 1.0)]
    if len(spacing) != 3 or not all(0 < s < float("inf") for s in spacing):
        raise InputError(f"spacing_mm is {spacing}; expected three positive numbers (z, y, x)")
    if stated is not None and not np.allclose(spacing, stated, rtol=0.01):
        raise InputError(f"spacing_mm is {spacing}; the card states {list(stated)}. Resample on reading")
    return spacing


def _checked_affine(raw: RawSample, card: DatasetCard) -> list[list[float]] | None:
    if raw.affine is None:
        return None
    affine = np.asarray(raw.affine, float)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise InputError(f"affine is {affine.tolist()}; expected 4x4 finite numbers")
    if card.input.orientation is not None:
        from nibabel.orientations import aff2axcodes

        codes = "".join(str(c) for c in aff2axcodes(affine))
        if codes != card.input.orientation:
            raise InputError(f"orientation is {codes}; the card states {card.input.orientation}. Turn on reading")
    return affine.tolist()
