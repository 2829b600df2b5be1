"""One sample inside a shard: the members it is written as, and what they are read back to.

A sample of key K is what its medium keeps (K.image.npy (C, D, H, W), or K.mp4), K.NAME.npy (D, H, W) for each target
that is per voxel, and K.json with the values of the other targets, spacing, affine, what was measured and what the
reader noticed. Large volumes are K.image.b2nd and K.NAME.b2nd instead, in chunks.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
import orjson

from inflate3d.contracts import AbstractTarget, DatasetCard, RawSample, medium_of
from inflate3d.data.raw.keys import KEY_RULE, is_key
from inflate3d.data.samples.chunked import SUFFIX as CHUNKED_SUFFIX
from inflate3d.data.samples.chunked import ChunkedArray, Region, encode_chunked
from inflate3d.data.samples.record import stored_value
from inflate3d.discover import plug_ins
from inflate3d.errors import InputError, unknown_name

Buffer = bytes | memoryview
DTYPES = (np.dtype("uint8"), np.dtype("int16"), np.dtype("float32"))
"""Of arrays in shards."""
_ARRAY_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
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
    if not is_key(key):
        raise InputError(f"case key {key!r}; allowed: {KEY_RULE}")
    try:
        parts, facts = medium_of(card).encode(raw, card)
        masks, values = _encode_targets(raw, card, facts["shape"][1:])
    except InputError as fault:
        raise InputError(f"{card.name}: case {key!r}: {fault}") from fault
    arrays = {name: part for name, part in parts.items() if isinstance(part, np.ndarray)}
    members: dict[str, bytes] = {suffix: bytes(part) for suffix, part in parts.items() if suffix not in arrays}
    in_chunks = chunk_from is not None and any(array.nbytes >= chunk_from for array in arrays.values())
    for name, array in {**arrays, **masks}.items():
        if in_chunks:
            members[f"{name}{CHUNKED_SUFFIX}"], table = encode_chunked(array, is_mask=name in masks)
            facts.setdefault("chunks", {})[name] = table
        else:
            members[f"{name}.npy"] = _encode_npy(array)
    if masks:
        facts["measured"] = {name: card.targets[name].facts(mask) for name, mask in masks.items()}
    record = {**raw.extra, **facts, "targets": values, "group": group}
    if raw.noticed:
        record["noticed"] = [list(fact) for fact in raw.noticed]
    members["json"] = json.dumps(record, sort_keys=True, allow_nan=False, default=_plain).encode()
    return members


def _encode_targets(
    raw: RawSample, card: DatasetCard, shape_DHW: Sequence[int]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays of per_voxel targets and the values of the others, by name; None where one is not known."""
    for name in raw.targets:
        if name not in card.targets:
            raise unknown_name("target", name, card.targets, where="targets")
    masks: dict[str, np.ndarray] = {}
    values: dict[str, Any] = {}
    for name, target in card.targets.items():
        value = raw.targets.get(name)
        try:
            if not target.per_voxel:
                values[name] = None if value is None else target.encode(value)
                continue
            if value is None:
                raise InputError("is not there; every sample needs one")
            masks[name] = target.encode(value)
        except InputError as fault:
            raise InputError(f"{name} {fault}") from fault
        if list(masks[name].shape) != list(shape_DHW):
            raise InputError(f"image is {tuple(shape_DHW)} and {name} {masks[name].shape}; they must be equal")
    return masks, values


def check_members(key: str, members: Mapping[str, Any], card: DatasetCard) -> None:
    """Raise InputError that names the sample where decoded members are not what its card promises.

    Shapes, types and the record are looked at, since shards may be anyone's; voxels are not read.
    """
    record = members.get("json")
    try:
        if not isinstance(record, dict):
            raise InputError("has no json member")
        medium_of(card).check(members, record, card)
        for name, target in card.targets.items():
            _check_target(name, target, members, record)
    except InputError as fault:
        raise InputError(f"sample {key!r}: {fault}") from fault


def _check_target(name: str, target: AbstractTarget, members: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    value = members.get(name) if target.per_voxel else stored_value(record, name)
    try:
        target.check(value)
    except InputError as fault:
        raise InputError(f"{name} {fault}") from fault
    if target.per_voxel and tuple(value.shape) != tuple(members["image"].shape[1:]):  # type: ignore[union-attr]
        raise InputError(f"{name} is {tuple(value.shape)}; expected {tuple(members['image'].shape[1:])}")  # type: ignore[union-attr]


def decode_members(members: Mapping[str, Buffer | Region]) -> dict[str, Any]:
    """Return {MEMBER: array or buffer, TARGET: array, "json": dict}, with what the sample has.

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


def as_stored(array: np.ndarray, *, is_image: bool) -> np.ndarray:
    """Return an array of tars that others wrote as shards hold it: image (C, D, H, W), mask (D, H, W) uint8.

    What cannot be made so stays as it is, for the checks to refuse; ValueError for labels that do not fit.
    """
    if is_image:
        array = array[None] if array.ndim == 3 else array
        return array if array.dtype in DTYPES else array.astype(np.uint8 if array.dtype == bool else np.float32)
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    if array.dtype != np.uint8 and array.dtype.kind in "biu" and array.size:
        if not 0 <= int(array.min()) <= int(array.max()) <= 255:
            raise ValueError(f"mask holds labels from {array.min()} to {array.max()}; allowed: 0 to 255")
        return array.astype(np.uint8)
    return array


@cache
def byte_members() -> dict[str, str]:
    """Return the suffixes of members that media keep as bytes, each with the name that it is decoded under."""
    media = (plug_in.load() for plug_in in plug_ins("media").values())
    return {suffix: name for medium in media for suffix, name in medium.byte_members.items()}


@lru_cache(maxsize=64)
def _decoder(suffix: str) -> tuple[str, Callable[[Any], Any] | None]:
    """Return the name that a member is decoded under, and by what; None: it is in chunks."""
    name, _, ending = suffix.rpartition(".")
    if suffix == "json":
        return "json", _decode_json
    if suffix in byte_members():
        return byte_members()[suffix], lambda content: content
    if _ARRAY_NAME.fullmatch(name) and ending == "npy":
        return name, _decode_npy
    if _ARRAY_NAME.fullmatch(name) and f".{ending}" == CHUNKED_SUFFIX:
        return name, None
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


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"extra holds a {type(value).__name__}, which JSON cannot hold")
