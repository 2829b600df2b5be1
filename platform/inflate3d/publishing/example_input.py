"""A small input for a publication's head, made by a formula, so that its page can be tried by one command."""

# D H W voxels along z y x.

from __future__ import annotations

import gzip
from collections.abc import Mapping
from typing import Any

import numpy as np

from inflate3d.models.publication.heads import is_per_voxel

_SMALLEST = (16, 16, 16)


def example_of(config: Mapping[str, Any]) -> tuple[str, bytes] | None:
    """Return a head's name and a NIfTI for it, .nii.gz; None where no head takes volumes of one channel.

    The segmenter of the publication's own dataset comes first, then its other heads, then those of others. The volume
    has the head's orientation and spacing and the size of one of its samples.
    """
    own, heads = config["input"].get("domain"), config["heads"]
    inputs = {name: entry.get("input", config["input"]) for name, entry in heads.items()}
    fitting = [name for name, spec in inputs.items() if _takes_one_channel(heads[name], spec)]
    if not fitting:
        return None
    chosen = min(fitting, key=lambda name: (heads[name]["dataset"] != own, not is_per_voxel(heads[name])))
    spec = inputs[chosen]
    return chosen, _nifti(_volume(_size(heads[chosen], spec), spec), spec)


def _takes_one_channel(entry: Mapping[str, Any], spec: Mapping[str, Any]) -> bool:
    return entry.get("media", spec.get("media")) == "volume" and len(set(spec["channels"])) == 1


def _size(entry: Mapping[str, Any], spec: Mapping[str, Any]) -> tuple[int, ...]:
    sample = spec.get("sample") or {}
    return tuple(entry.get("window") or sample.get("patch_size") or sample.get("size") or _SMALLEST)


def _volume(size_DHW: tuple[int, ...], spec: Mapping[str, Any]) -> np.ndarray:
    """Return int16: two soft ellipsoids, one in the other, on a slope; values fill the head's window or 0 to 1000."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in size_DHW), indexing="ij")
    outer = 1 / (1 + np.exp(16 * (np.sqrt(z**2 + y**2 + x**2) - 0.8)))
    inner = 1 / (1 + np.exp(16 * (np.sqrt((z / 0.4) ** 2 + (y / 0.6) ** 2 + ((x - 0.2) / 0.4) ** 2) - 0.8)))
    shares = 0.1 + 0.4 * outer + 0.4 * inner + 0.05 * y
    intensity = spec.get("intensity") or {}
    low, high = intensity["window"] if intensity.get("mode") == "window" else (0, 1000)
    return np.rint(low + (high - low) * shares).astype(np.int16)


def _nifti(array_DHW: np.ndarray, spec: Mapping[str, Any]) -> bytes:
    import nibabel as nib

    axes = nib.orientations.axcodes2ornt(tuple(spec.get("orientation") or "RAS"))
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    steps_mm = reversed(spec.get("spacing_mm") or (1, 1, 1))
    for column, ((row, sign), step_mm) in enumerate(zip(axes, steps_mm, strict=True)):
        affine[int(row), column] = sign * step_mm
    image = nib.Nifti1Image(np.ascontiguousarray(array_DHW.transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), 9, mtime=0)
