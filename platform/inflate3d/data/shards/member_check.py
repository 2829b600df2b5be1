"""Are decoded members what their dataset's card promises? Asked of each sample read, since shards may be anyone's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from inflate3d.contracts import DatasetCard
from inflate3d.errors import InputError

_TYPES = ("uint8", "int16", "float32")
_MOST_VOXELS = 2**33


def check_members(key: str, members: Mapping[str, Any], card: DatasetCard) -> None:
    """Raise InputError that names the sample and what is wrong: shapes, types and the record; voxels are not read."""
    record = members.get("json")
    if not isinstance(record, dict):
        raise InputError(f"sample {key!r}: has no json member")
    if card.kind != "volume_segmentation" and not _is_whole(record.get("label"), 0, len(card.classes) - 1):
        raise InputError(f"sample {key!r}: label is {record.get('label')!r}; allowed: 0 to {len(card.classes) - 1}")
    if card.kind == "video_classification":
        _check_video(key, members, record)
        return
    _check_place(key, record)
    image, mask = members.get("image"), members.get("mask")
    if image is None or image.ndim != 4 or image.dtype not in _TYPES or not 0 < image.size < _MOST_VOXELS:
        raise InputError(f"sample {key!r}: image is {_told(image)}; expected (C, D, H, W) of {', '.join(_TYPES)}")
    if len(image) != len(card.input.channels):
        raise InputError(f"sample {key!r}: {len(image)} channels; the card states {list(card.input.channels)}")
    if card.kind == "volume_segmentation" and (
        mask is None or mask.dtype != "uint8" or tuple(mask.shape) != tuple(image.shape[1:])
    ):
        raise InputError(f"sample {key!r}: mask is {_told(mask)}; expected uint8 {tuple(image.shape[1:])}")


def _check_video(key: str, members: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    if "video" not in members:
        raise InputError(f"sample {key!r}: has no video member")
    frames, fps = record.get("num_frames"), record.get("fps")
    if not _is_whole(frames, 1, 2**31) or not _is_number(fps) or not 0 < fps < 1e6:
        raise InputError(f"sample {key!r}: num_frames is {frames!r} and fps {fps!r}; expected numbers above 0")


def _check_place(key: str, record: Mapping[str, Any]) -> None:
    spacing, affine = record.get("spacing_mm"), record.get("affine")
    if spacing is not None and not (_is_list(spacing, 3) and all(_is_number(s) and s > 0 for s in spacing)):
        raise InputError(f"sample {key!r}: spacing_mm is {str(spacing)[:80]}; expected three numbers above 0")
    rows = affine if affine is not None else []
    if affine is not None and not (
        _is_list(rows, 4) and all(_is_list(row, 4) and all(map(_is_number, row)) for row in rows)
    ):
        raise InputError(f"sample {key!r}: affine is {str(affine)[:80]}; expected 4x4 numbers")


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30 and math.isfinite(value)


def _is_whole(value: Any, low: int, high: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _told(array: Any) -> str:
    return "none" if array is None else f"{array.dtype} {tuple(array.shape)}"
