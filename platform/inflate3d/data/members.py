"""One sample inside a shard: the members it is written as, and what they are read back to.

A sample of key K is K.image.npy (C, D, H, W), K.mask.npy (D, H, W) or K.<video suffix>, and K.json with its label,
spacing, affine and what was measured of it.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from inflate3d.contracts import DatasetCard, RawSample
from inflate3d.data.readers import check_pair
from inflate3d.errors import InputError

Buffer = bytes | memoryview
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,200}")
VIDEO_SUFFIXES = ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "flv", "wmv", "3gp")
_DTYPES = (np.dtype("uint8"), np.dtype("int16"), np.dtype("float32"))
_MEASURED_VOXELS = 100_000


def encode_sample(raw: RawSample, card: DatasetCard, *, key: str, group: str | None = None) -> dict[str, bytes]:
    """Return the members of a sample by suffix, after checking that it is what the card promises.

    Raises InputError that names the key and what is wrong. The same sample gives the same bytes.
    """
    if not KEY_PATTERN.fullmatch(key):
        raise InputError(f"case key {key!r}: only letters, digits, '_' and '-' are allowed, 200 at the most")
    where = f"{card.name}: case {key!r}"
    is_video = card.kind == "video_classification"
    members, facts = _encode_video(raw, where) if is_video else _encode_volume(raw, card, where)
    record = {**raw.extra, **facts, "label": _label(raw, card, where), "group": group}
    members["json"] = json.dumps(record, sort_keys=True, allow_nan=False, default=_plain).encode()
    return members


def decode_members(members: Mapping[str, Buffer]) -> dict[str, Any]:
    """Return {"image": array, "mask": array, "video": buffer, "json": dict}, with what the sample has.

    Arrays share memory with `members`. Nothing is ever unpickled. Raises ValueError for damaged or unknown members.
    """
    return dict(_decode(suffix, content) for suffix, content in members.items())


def _decode(suffix: str, content: Buffer) -> tuple[str, Any]:
    if suffix.endswith(".npy"):
        return suffix.removesuffix(".npy"), _decode_npy(content)
    if suffix == "json":
        return "json", json.loads(bytes(content))
    if suffix in VIDEO_SUFFIXES:
        return "video", content
    raise ValueError(f"unknown member '.{suffix}'")


def _encode_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _decode_npy(content: Buffer) -> np.ndarray:
    head = io.BytesIO(bytes(content[:4096]))
    if np.lib.format.read_magic(head) != (1, 0):
        raise ValueError("npy version is not 1.0")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(head)
    if dtype.hasobject or fortran_order:
        raise ValueError(f"npy of {dtype}, fortran_order {fortran_order}; expected plain numbers in C order")
    return np.frombuffer(content, dtype, offset=head.tell()).reshape(shape)  # reshape checks the size


def _encode_video(raw: RawSample, where: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    from inflate3d.data.video import decode_frames, probe_video

    suffix = raw.video_suffix.lower().lstrip(".")
    if raw.video is None or suffix not in VIDEO_SUFFIXES:
        raise InputError(f"{where}: no video, or suffix {suffix!r} is not one of {', '.join(VIDEO_SUFFIXES)}")
    try:
        info = probe_video(raw.video)
        decode_frames(raw.video, [info.num_frames - 1])
    except InputError as fault:
        raise InputError(f"{where}: {fault}") from fault
    facts = {
        "shape": [3, info.num_frames, info.height, info.width],
        "spacing_mm": [1.0 / info.fps, 1.0, 1.0],
        "affine": None,
        "num_frames": info.num_frames,
        "fps": info.fps,
    }
    return {suffix: bytes(raw.video)}, facts


def _encode_volume(raw: RawSample, card: DatasetCard, where: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    image = _checked_image(raw.image, card, where)
    facts = {
        "shape": list(image.shape),
        "spacing_mm": _checked_spacing(raw, card, where),
        "affine": _checked_affine(raw, card, where),
        "intensity": _measure_intensity(image),
    }
    members = {"image.npy": _encode_npy(image)}
    if card.kind == "volume_segmentation":
        if raw.mask is None or raw.mask.dtype != np.uint8 or raw.mask.ndim != 3:
            got = "none" if raw.mask is None else f"{raw.mask.dtype} {raw.mask.shape}"
            raise InputError(f"{where}: mask is {got}; expected uint8 (D, H, W)")
        check_pair(image, raw.mask, card.classes, where=where)
        members["mask.npy"] = _encode_npy(raw.mask)
        facts["label_voxels"] = np.bincount(raw.mask.ravel(), minlength=len(card.classes)).tolist()
    return members, facts


def _checked_image(image: np.ndarray | None, card: DatasetCard, where: str) -> np.ndarray:
    if image is None:
        raise InputError(f"{where}: has no image; kind {card.kind!r} needs one")
    if image.ndim != 4 or image.size == 0:
        raise InputError(f"{where}: image is {image.ndim}-D {image.shape}; expected (C, D, H, W)")
    if image.dtype not in _DTYPES:
        raise InputError(f"{where}: image is {image.dtype}; expected one of {', '.join(map(str, _DTYPES))}")
    if len(image) != len(card.input.channels):
        raise InputError(f"{where}: image has {len(image)} channels; the card states {list(card.input.channels)}")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise InputError(f"{where}: image holds voxels that are NaN or infinite")
    return image


def _checked_spacing(raw: RawSample, card: DatasetCard, where: str) -> list[float]:
    stated = card.input.spacing_mm
    spacing = [float(s) for s in raw.spacing_mm or stated or (1.0, 1.0, 1.0)]
    if len(spacing) != 3 or not all(0 < s < float("inf") for s in spacing):
        raise InputError(f"{where}: spacing_mm is {spacing}; expected three positive numbers (z, y, x)")
    if stated is not None and not np.allclose(spacing, stated, rtol=0.01):
        raise InputError(f"{where}: spacing_mm is {spacing}; the card states {list(stated)}. Resample on reading")
    return spacing


def _checked_affine(raw: RawSample, card: DatasetCard, where: str) -> list[list[float]] | None:
    if raw.affine is None:
        return None
    affine = np.asarray(raw.affine, float)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise InputError(f"{where}: affine is {affine.tolist()}; expected 4x4 finite numbers")
    if card.input.orientation is not None:
        from nibabel.orientations import aff2axcodes

        codes = "".join(str(c) for c in aff2axcodes(affine))
        if codes != card.input.orientation:
            raise InputError(
                f"{where}: orientation is {codes}; the card states {card.input.orientation}. Turn on reading"
            )
    return affine.tolist()


def _label(raw: RawSample, card: DatasetCard, where: str) -> int | None:
    if card.kind == "volume_segmentation":
        return None if raw.label is None else int(raw.label)
    if raw.label is None or not 0 <= int(raw.label) < len(card.classes):
        raise InputError(f"{where}: label is {raw.label}; allowed: 0 to {len(card.classes) - 1}")
    return int(raw.label)


def _measure_intensity(image: np.ndarray) -> dict[str, float]:
    """Percentiles, mean and standard deviation of about 10^5 evenly spaced voxels over all channels."""
    flat = image.reshape(-1)
    some = flat[:: max(1, flat.size // _MEASURED_VOXELS)].astype(np.float64)
    low, middle, high = np.percentile(some, (0.5, 50, 99.5))
    values = {"p0.5": low, "median": middle, "p99.5": high, "mean": some.mean(), "std": some.std()}
    return {name: float(f"{value:.6g}") for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"extra holds a {type(value).__name__}, which JSON cannot hold")
