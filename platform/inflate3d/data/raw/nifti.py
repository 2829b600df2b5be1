"""NIfTI files, version 1 and 2, compressed or not: what they hold, and how volumes are written."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from inflate3d.data.raw.noticed import Noticed
from inflate3d.data.raw.stored import Stored, in_millimetres
from inflate3d.errors import InputError

NIFTI = (".nii", ".nii.gz")
# Deflate cannot compress data further than this, so a header that states more is wrong.
MOST_DEFLATE = 1032
_GZIP = b"\x1f\x8b"
_PIECE = 2**20
_UNITS = {0: ("unstated", 1.0), 1: ("m", 1e3), 2: ("mm", 1.0), 3: ("micron", 1e-3)}  # xyzt_units & 7


def load_nifti(path: Path) -> Stored:
    """Return the numbers of a NIfTI file and where its voxels lie, whatever its ending says of compression.

    Units are those of xyzt_units (m, mm or micron; unstated means mm). The place is the sform's where sform_code says
    so, else the qform's (NIfTI-1.1, method 3 and 2). Numbers are values where scl_slope is 0 or NaN. Axes after z of
    size 1 are dropped; one longer is channels. InputError for what is not a volume, for a file shorter than its header
    states, and for one that holds a slice more.
    """
    raw = path.read_bytes()
    header, size = _header(raw, path)
    data, noticed = _gunzip(raw, size) if raw[:2] == _GZIP else (raw, ())
    dtype, shape = header.get_data_dtype(), header.get_data_shape()
    noticed += _rest(data, size, math.prod(shape[:2]) * dtype.itemsize, path)
    array = np.frombuffer(data, dtype, math.prod(shape), header.get_data_offset()).reshape(shape, order="F")
    slope, intercept = _scale(header)
    unit, factor = _unit(header, path)
    affine, told = in_millimetres(header.get_best_affine(), unit, factor)
    return Stored(
        with_channels(array, path), affine, slope, intercept, (*noticed, *told, *_doubts(header, affine, factor))
    )


def nifti_header(path: Path) -> Any:
    """Return the header as nibabel reads it, whatever the ending says of compression. None: no NIfTI file."""
    with path.open("rb") as file:
        raw = file.read(4096)
    return _header_of(raw) if _magic(raw) is not None else None


def write_nifti(path: str | Path, array: np.ndarray, affine: Any = None) -> Path:
    """Write (D, H, W) or (C, D, H, W) as NIfTI in (X, Y, Z[, C]); `affine` maps (W, H, D) to RAS+ mm."""
    import nibabel as nib

    array = np.asarray(array)
    assert array.ndim in (3, 4), array.shape
    array_XYZ = array.transpose(2, 1, 0) if array.ndim == 3 else array.transpose(3, 2, 1, 0)
    kinds = {"b": np.uint8, "i": np.int32, "u": np.int32, "f": np.float32}
    dtype = array.dtype if array.dtype in (np.uint8, np.int16) else kinds[array.dtype.kind]
    image = nib.Nifti1Image(array_XYZ.astype(dtype), np.eye(4) if affine is None else np.asarray(affine, float))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return Path(path)


def with_channels(array: np.ndarray, path: Path) -> np.ndarray:
    """Return (X, Y, Z, C) of an array with axes of size 1 among those after z. InputError if two are longer."""
    shape = array.shape
    longer = [n for n in shape[3:] if n != 1]
    if len(shape) < 3 or len(longer) > 1:
        raise InputError(f"{path}: {array.ndim}-D {shape}; expected a volume (X, Y, Z) or (X, Y, Z, channels)")
    return array.reshape((*shape[:3], longer[0] if longer else 1), order="F")


def refuse_absurd(size: int, most: int, shape: Any, path: Path) -> None:
    """Check a header against the file size before anything is allocated. InputError states both."""
    if any(n < 0 for n in shape) or size > most:
        raise InputError(
            f"{path}: header states {tuple(int(n) for n in shape)}, {size} bytes; "
            "the file is too short: corrupt or truncated"
        )


def _magic(raw: bytes) -> bytes | None:
    """Return the first KiB, decompressed; None if it is no NIfTI."""
    head = zlib.decompressobj(wbits=31).decompress(raw, 1024) if raw[:2] == _GZIP else raw[:1024]
    sizes = (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big"))
    return head if len(head) >= 348 and {348, 540} & set(sizes) else None


def _header_of(raw: bytes) -> Any:
    import nibabel as nib

    head = _magic(raw)
    assert head is not None
    is_second = 540 in (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big"))
    header_class: Any = nib.Nifti2Header if is_second else nib.Nifti1Header
    return header_class(head[: header_class.template_dtype.itemsize])


def _header(raw: bytes, path: Path) -> tuple[Any, int]:
    """Return the header and the bytes up to the last voxel, after the checks that need no voxel."""
    if _magic(raw) is None:
        raise InputError(f"{path}: is no NIfTI file, or corrupt or truncated: its first bytes are {raw[:4].hex(' ')}")
    header = _header_of(raw)
    dtype, shape = header.get_data_dtype(), header.get_data_shape()
    if dtype.kind not in "biuf":
        raise InputError(f"{path}: voxels of type {dtype}; allowed: integers and floats")
    if bytes(header["magic"].item()).rstrip(b"\0")[:2] == b"ni":
        raise InputError(f"{path}: the header of a pair .hdr/.img; convert it to one .nii.gz")
    size = int(header.get_data_offset()) + math.prod(shape) * dtype.itemsize
    refuse_absurd(size, len(raw) * (MOST_DEFLATE if raw[:2] == _GZIP else 1), shape, path)
    return header, size


def _gunzip(raw: bytes, size: int) -> tuple[bytearray, tuple[Noticed, ...]]:
    """Decompress every member and verify its checksum; about `size` bytes at most.

    What follows a whole member and is no member itself is not data (RFC 1952; gzip ignores it as well): noticed,
    unless it is zeros.
    """
    data, rest = bytearray(), memoryview(raw)
    while rest[:2] == _GZIP or not data:
        member = zlib.decompressobj(wbits=31)
        while not member.eof and rest:
            _extend(data, member, rest[:_PIECE], size + 2**20)
            rest = rest[_PIECE:]
        if not member.eof:
            raise EOFError("the compressed data ends early")
        rest = memoryview(raw[len(raw) - len(rest) - len(member.unused_data) :].lstrip(b"\0"))
    told = (Noticed("bytes after the data", f"{len(rest)} bytes after the gzip data are no part of it"),)
    return data, told if rest else ()


def _extend(data: bytearray, member: Any, piece: Any, most: int) -> None:
    """Add what a piece holds, a bounded part at a time: zlib joins a whole answer from blocks, at twice its size."""
    part = b""
    while piece or len(part) == _PIECE:
        part = member.decompress(piece, _PIECE)
        data += part
        if len(data) > most:
            raise ValueError(f"holds more than the {most - 2**20} bytes stated in its header")
        piece = member.unconsumed_tail


def _rest(data: bytes | bytearray, size: int, slice_bytes: int, path: Path) -> tuple[Noticed, ...]:
    """Say what follows the last voxel. InputError if the voxels end early, or a slice or more is left over."""
    if len(data) < size:
        raise InputError(f"{path}: holds {len(data)} of the {size} bytes that its header states; it is truncated")
    left = len(data) - size
    if left == 0 or not bytes(data[size:]).strip(b"\0"):
        return ()
    if left >= slice_bytes:
        raise InputError(
            f"{path}: holds {left} bytes more than the voxels that its header states, a slice or more; "
            "its dimensions are wrong. Fix the header"
        )
    return (Noticed("bytes after the data", f"{left} bytes after the last voxel are no part of the volume"),)


def _scale(header: Any) -> tuple[float, float]:
    """Return slope and intercept (NIfTI-1.1: scl_slope 0 means none; NaN is taken for the same)."""
    if np.isinf(header["scl_slope"]):
        raise ValueError(f"scl_slope is {header['scl_slope']}")
    slope, intercept = header.get_slope_inter()
    return (1.0, 0.0) if slope is None else (float(slope), float(intercept))


def _unit(header: Any, path: Path) -> tuple[str, float]:
    code = int(header["xyzt_units"]) & 7
    if code not in _UNITS:
        raise InputError(f"{path}: xyzt_units states the unit of length {code}; allowed: 1 m, 2 mm, 3 micron, 0 none")
    return _UNITS[code]


def _doubts(header: Any, affine: np.ndarray, factor: float) -> tuple[Noticed, ...]:
    """Say what the header leaves open or says twice: unit, place, and voxel sizes."""
    from inflate3d.data.raw.grid import corners_apart_mm, smallest_mm

    told = []
    if int(header["xyzt_units"]) & 7 == 0:
        told.append(Noticed("unit unstated", "the header states no unit of length; mm is taken"))
    sform, qform = header.get_sform(coded=True), header.get_qform(coded=True)
    if sform[1] == 0 and qform[1] == 0:
        told.append(Noticed("place unstated", "neither sform nor qform is set; axes are taken as the voxel sizes lie"))
        return tuple(told)
    scaled = np.diag([factor, factor, factor, 1.0])
    if sform[1] > 0 and qform[1] > 0:
        apart = corners_apart_mm(affine, scaled @ qform[0], header.get_data_shape()[:3])
        if apart > 0.1 * smallest_mm(affine):
            told.append(Noticed("two places", f"sform and qform differ by up to {apart:.3g} mm; the sform is taken"))
    sizes, stated = np.linalg.norm(affine[:3, :3], axis=0), np.abs(header["pixdim"][1:4]) * factor
    if not np.allclose(sizes, stated, rtol=0.01):
        said = " and ".join(f"({', '.join(f'{v:.4g}' for v in s)})" for s in (sizes, stated))
        told.append(Noticed("two voxel sizes", f"affine and pixdim state {said} mm; the affine is taken"))
    return tuple(told)
