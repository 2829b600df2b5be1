"""One sample inside a shard: the members it is written as, and what they are read back to.

A sample of key K is K.image.npy (C, D, H, W), K.mask.npy (D, H, W) or K.<video suffix>, and K.json with its label,
spacing, affine and what was measured of it. Large volumes are K.image.b2nd and K.mask.b2nd instead, in chunks.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import orjson

from inflate3d.contracts import DatasetCard, RawSample
from inflate3d.data.raw.readers import check_pair
from inflate3d.data.samples.chunked import SUFFIX as CHUNKED_SUFFIX
from inflate3d.data.samples.chunked import ChunkedArray, Region, encode_chunked
from inflate3d.errors import InputError

Buffer = bytes | memoryview
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,200}")
VIDEO_SUFFIXES = ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "flv", "wmv", "3gp")
_DTYPES = (np.dtype("uint8"), np.dtype("int16"), np.dtype("float32"))
_MEASURED_VOXELS = 100_000
_MOST_HEADER = 4096
CHUNK_FROM_BYTES = 4 * 2**20
"""Volumes of at least this size are stored in chunks (measured: docs/data.md)."""


def encode_sample(
    raw: RawSample, card: DatasetCard, *, key: str, group: str | None = None, chunk_from: int | None = None
) -> dict[str, bytes]:
    """Return the members of a sample by suffix, after checking that it is what the card promises.

    chunk_from: bytes from which on a volume is stored in chunks; None: never. Raises InputError that names the key and
    what is wrong. The same sample gives the same bytes.
    """
    if not KEY_PATTERN.fullmatch(key):
        raise InputError(f"case key {key!r}: only letters, digits, '_' and '-' are allowed, 200 at the most")
    where = f"{card.name}: case {key!r}"
    is_video = card.kind == "video_classification"
    members, facts = _encode_video(raw, where) if is_video else _encode_volume(raw, card, where, chunk_from)
    record = {**raw.extra, **facts, "label": _label(raw, card, where), "group": group}
    members["json"] = json.dumps(record, sort_keys=True, allow_nan=False, default=_plain).encode()
    return members


def decode_members(members: Mapping[str, Buffer | Region]) -> dict[str, Any]:
    """Return {"image": array, "mask": array, "video": buffer, "json": dict}, with what the sample has.

    Arrays share memory with `members`; those in chunks are ChunkedArray. Nothing is ever unpickled. Raises ValueError
    for damaged or unknown members.
    """
    decoded: dict[str, Any] = {}
    chunked = []
    for suffix, content in members.items():
        name, decode = _decoder(suffix)
        if decode is not None:
            decoded[name] = decode(content)
        else:
            chunked.append((name, content))
    for name, content in chunked:  # after the JSON member, which says where the chunks are
        decoded[name] = ChunkedArray(content, _table(decoded, name))
    return decoded


def as_stored(array: np.ndarray, name: str) -> np.ndarray:
    """Return an array of tars that others wrote as shards hold it: image (C, D, H, W), mask (D, H, W) uint8.

    What cannot be made so stays as it is, for the checks to refuse; ValueError for labels that do not fit.
    """
    if name == "image":
        array = array[None] if array.ndim == 3 else array
        return array if array.dtype in _DTYPES else array.astype(np.uint8 if array.dtype == bool else np.float32)
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    if array.dtype != np.uint8 and array.dtype.kind in "biu" and array.size:
        if not 0 <= int(array.min()) <= int(array.max()) <= 255:
            raise ValueError(f"mask holds labels from {array.min()} to {array.max()}; allowed: 0 to 255")
        return array.astype(np.uint8)
    return array


@lru_cache(maxsize=64)
def _decoder(suffix: str) -> tuple[str, Callable[[Any], Any] | None]:
    """Return the name that a member is decoded under, and by what; None: it is in chunks."""
    if suffix in ("image.npy", "mask.npy"):
        return suffix.removesuffix(".npy"), _decode_npy
    if suffix == "json":
        return "json", _decode_json
    if suffix in VIDEO_SUFFIXES:
        return "video", lambda content: content
    if suffix.endswith(CHUNKED_SUFFIX):
        return suffix.removesuffix(CHUNKED_SUFFIX), None
    raise ValueError(f"unknown member '.{suffix}'")


def _decode_json(content: Buffer) -> dict[str, Any]:
    record = orjson.loads(content)  # four times as fast as json, whose share of a small sample was a half
    if not isinstance(record, dict):
        raise ValueError(f"json holds a {type(record).__name__}; expected one object")
    return record


def _table(decoded: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    tables = decoded.get("json", {}).get("chunks")
    if not isinstance(tables, dict) or not isinstance(tables.get(name), dict):
        raise ValueError(f"json has no table of the chunks of {name!r}")
    return tables[name]


def _encode_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _decode_npy(content: Buffer) -> np.ndarray:
    end = 10 + int.from_bytes(content[8:10], "little")
    if len(content) < 10 or end > _MOST_HEADER:
        raise ValueError("npy has no header of a sane length")
    shape, dtype, size = _read_header(bytes(content[:end]))
    if len(content) - end != size:
        raise ValueError(f"npy header states {shape} {dtype}, {size} bytes; {len(content) - end} follow")
    return np.ndarray(shape, dtype, content, end)


@lru_cache(maxsize=512)
def _read_header(head: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    """Return the shape, type and bytes of an .npy; kept, since most samples of a dataset have the same header."""
    file = io.BytesIO(head)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("npy version is not 1.0")
    try:
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as fault:  # on hostile text NumPy lets through SyntaxError, TokenError, MemoryError ...
        raise ValueError(f"npy header cannot be read ({fault})") from fault
    if dtype.kind not in "biuf" or fortran_order or min(shape, default=0) < 0:
        raise ValueError(f"npy of {dtype} {shape}, fortran_order {fortran_order}; expected plain numbers in C order")
    return shape, dtype, math.prod(shape) * dtype.itemsize


def _encode_video(raw: RawSample, where: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    from inflate3d.data.samples.frames import decode_frames, probe_video

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


def _encode_volume(
    raw: RawSample, card: DatasetCard, where: str, chunk_from: int | None
) -> tuple[dict[str, bytes], dict[str, Any]]:
    image = _checked_image(raw.image, card, where)
    facts: dict[str, Any] = {
        "shape": list(image.shape),
        "spacing_mm": _checked_spacing(raw, card, where),
        "affine": _checked_affine(raw, card, where),
        "intensity": _measure_intensity(image),
    }
    arrays = {"image": image}
    if card.kind == "volume_segmentation":
        if raw.mask is None or raw.mask.dtype != np.uint8 or raw.mask.ndim != 3:
            got = "none" if raw.mask is None else f"{raw.mask.dtype} {raw.mask.shape}"
            raise InputError(f"{where}: mask is {got}; expected uint8 (D, H, W)")
        check_pair(image, raw.mask, card.classes, where=where)
        arrays["mask"] = raw.mask
        facts["label_voxels"] = np.bincount(raw.mask.ravel(), minlength=len(card.classes)).tolist()
    if chunk_from is None or image.nbytes < chunk_from:
        return {f"{name}.npy": _encode_npy(array) for name, array in arrays.items()}, facts
    encoded = {name: encode_chunked(array, is_mask=name == "mask") for name, array in arrays.items()}
    facts["chunks"] = {name: table for name, (_, table) in encoded.items()}
    return {f"{name}{CHUNKED_SUFFIX}": content for name, (content, _) in encoded.items()}, facts


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
