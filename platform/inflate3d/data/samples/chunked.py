"""Large volumes in chunks: a blosc2 b2nd file of which a patch decodes alone, each chunk under a hash of its own.

The member is a plain b2nd file (`blosc2.ndarray_from_cframe` opens it). Where its chunks lie stands in the sample's
JSON member, so a reader takes exactly the chunks that it needs, and gives none to the decompressor before its hash
agrees: blosc2 itself lets most flipped bits pass.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from xxhash import xxh3_64_hexdigest

SUFFIX = ".b2nd"
CHUNK = 64
_HEADER = 32  # bytes of a blosc2 chunk's header
_MOST_CHUNK_BYTES = 2**26
_DTYPES = ("uint8", "int16", "float32")


class ChunkError(ValueError):
    """A chunk, or the table that says where it lies, is not what was written."""


@dataclass(frozen=True)
class Region:
    """A member of `size` bytes that is read in pieces: read(offset, size) -> bytes, gone with the next call."""

    size: int
    read: Callable[[int, int], memoryview]


def encode_chunked(array: np.ndarray, *, is_mask: bool = False, chunk: int = CHUNK) -> tuple[bytes, dict[str, Any]]:
    """Return the b2nd file of (C, D, H, W) or a mask (D, H, W), and the table for its JSON member.

    Same array, same bytes. Images: lz4 over shuffled bits. Masks: zstd, and the table counts the labels of each chunk.
    """
    import blosc2

    shape = tuple(min(chunk, n) for n in array.shape[-3:])
    shape = (1, *shape) if array.ndim == 4 else shape
    codec, level = (blosc2.Codec.ZSTD, 5) if is_mask else (blosc2.Codec.LZ4, 9)
    options = {
        "codec": codec,
        "clevel": level,
        "filters": [blosc2.Filter.BITSHUFFLE],
        "filters_meta": [0],
        "nthreads": 1,
    }
    stored = blosc2.asarray(np.ascontiguousarray(array), chunks=shape, blocks=shape, cparams=options)
    frame = stored.to_cframe()
    table: dict[str, Any] = {"dtype": str(array.dtype), "shape": list(array.shape), "chunk": list(shape)}
    table["places"] = _places(stored, frame, array, shape)
    if is_mask:
        table["labels"] = [_count(array[box]) for box in _boxes(array.shape, shape)]
    else:
        flat = array.reshape(len(array), -1)
        moments = {"min": flat.min(1), "mean": flat.mean(1, dtype=np.float64), "std": flat.std(1, dtype=np.float64)}
        table |= {name: [float(v) for v in values] for name, values in moments.items()}
    return frame, table


class ChunkedArray:
    """A stored volume that is decoded where it is asked for: array[..., d, h, w] by slices, or np.asarray(array)."""

    def __init__(self, content: Region | bytes | memoryview, table: Mapping[str, Any]) -> None:
        """Check the table before anything is allocated. Raises ChunkError for one that no build writes."""
        try:
            self.shape = tuple(int(n) for n in table["shape"])
            self.chunk = tuple(int(n) for n in table["chunk"])
            self.table, self.places, dtype = table, table["places"], table["dtype"]
        except (KeyError, TypeError, ValueError, OverflowError) as fault:
            raise ChunkError(f"chunks are described wrongly ({fault!r})") from fault
        self._region = content if isinstance(content, Region) else _in_memory(content)
        counts = [-(-n // c) for n, c in zip(self.shape, self.chunk, strict=False) if c > 0]
        fits = len(self.shape) == len(self.chunk) == len(counts) and self.ndim in (3, 4) and min(self.shape) > 0
        if dtype not in _DTYPES or not fits or math.prod(counts) != len(self.places):
            raise ChunkError(f"chunks of {self.chunk} in {self.shape} {dtype}: {len(self.places)} listed")
        self.dtype, self._counts = np.dtype(dtype), counts
        if math.prod(self.chunk) * self.dtype.itemsize > _MOST_CHUNK_BYTES:
            raise ChunkError(f"chunks of {self.chunk} {dtype} are absurdly large")

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self[(slice(None),) * self.ndim]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __getitem__(self, box: Any) -> np.ndarray:
        """Return a box: slices of step 1 for the last axes, perhaps after an Ellipsis."""
        slices = [s for s in box if s is not Ellipsis]
        slices = [slice(None)] * (self.ndim - len(slices)) + slices
        spans = [s.indices(n)[:2] for s, n in zip(slices, self.shape, strict=True)]
        out = np.empty([max(0, stop - start) for start, stop in spans], self.dtype)
        # One for all chunks: new pages cost more than to decompress into them.
        memory = np.empty(self.chunk, self.dtype)
        cuts = [_cuts(span, c) for span, c in zip(spans, self.chunk, strict=True)]
        for cut in itertools.product(*cuts):
            number = 0
            for (i, *_), count in zip(cut, self._counts, strict=True):
                number = number * count + i
            _, inside, outside = zip(*cut, strict=True)
            out[outside] = self.decode(number, memory)[inside]
        return out

    def min(self, axis: Any = None, keepdims: bool = True) -> np.ndarray:
        """Return each channel's minimum, (C, 1, 1, 1), from the table."""
        return np.asarray(self.table["min"], self.dtype).reshape(-1, 1, 1, 1)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each channel's mean and standard deviation, from the table."""
        return np.asarray(self.table["mean"], np.float64), np.asarray(self.table["std"], np.float64)

    def voxels(self, label: int) -> int:
        """Return how many voxels of a mask have a label, from the table."""
        return sum(dict(map(tuple, counts)).get(label, 0) for counts in self.table["labels"])

    def voxel(self, label: int, number: int) -> tuple[int, ...]:
        """Return where the voxel `number` of a label is, counted chunk by chunk; decodes one chunk."""
        for i, counts in enumerate(self.table["labels"]):
            here = dict(map(tuple, counts)).get(label, 0)
            if number < here:
                box = next(itertools.islice(_boxes(self.shape, self.chunk), i, None))
                part = self.decode(i)[tuple(slice(0, s.stop - s.start) for s in box)]
                found = np.unravel_index(np.flatnonzero(part == label)[number], part.shape)
                return tuple(int(n) + s.start for n, s in zip(found, box, strict=True))
            number -= here
        raise ChunkError(f"no voxel {number} of label {label}")

    def decode(self, i: int, memory: np.ndarray | None = None) -> np.ndarray:
        """Return one whole chunk, padded as it is stored, in `memory` if that is given and the chunk is stored.

        Raises ChunkError if its bytes are not those written.
        """
        import blosc2

        try:
            offset, size, expected = self.places[i]
            if size == 0:
                return np.broadcast_to(np.asarray(offset, self.dtype), self.chunk)
            inside = isinstance(offset, int) and isinstance(size, int) and size >= _HEADER
            inside = inside and 0 <= offset <= offset + size <= self._region.size
        except (TypeError, ValueError, OverflowError) as fault:
            raise ChunkError(f"chunk {i} is described wrongly ({fault})") from fault
        if not inside:
            raise ChunkError(f"chunk {i} lies outside its member")
        content = self._region.read(offset, size)
        if xxh3_64_hexdigest(content) != expected:
            raise ChunkError(f"chunk {i} differs from what was written")
        out = np.empty(self.chunk, self.dtype) if memory is None else memory
        stated = int.from_bytes(content[4:8], "little"), int.from_bytes(content[12:16], "little")
        if stated != (out.nbytes, size):
            raise ChunkError(f"chunk {i} states {stated} bytes; expected {(out.nbytes, size)}")
        blosc2.decompress2(content, dst=out, nthreads=1)
        return out


def _places(stored: Any, frame: bytes, array: np.ndarray, shape: tuple[int, ...]) -> list[list[Any]]:
    """Return [offset, size, hash] of each chunk in the frame; [value, 0, ""] of one that is all one value."""
    position = int.from_bytes(frame[11:15], "big")  # after the frame's header
    places: list[list[Any]] = []
    for i, box in enumerate(_boxes(array.shape, shape)):
        chunk = bytes(stored.schunk.get_chunk(i))
        if frame[position : position + len(chunk)] == chunk:
            places.append([position, len(chunk), xxh3_64_hexdigest(chunk)])
            position += len(chunk)
        else:
            part = array[box]
            value = part.flat[0]
            assert (part == value).all(), "a chunk that blosc2 does not store holds one value"
            places.append([value.item(), 0, ""])
    return places


def _boxes(shape: tuple[int, ...], chunk: tuple[int, ...]) -> Any:
    steps = [range(0, n, c) for n, c in zip(shape, chunk, strict=True)]
    for begins in itertools.product(*steps):
        yield tuple(slice(b, min(b + c, n)) for b, c, n in zip(begins, chunk, shape, strict=True))


def _cuts(span: tuple[int, int], chunk: int) -> list[tuple[int, slice, slice]]:
    """Return each chunk that a span of one axis touches: its number, where in the chunk, where in the span."""
    start, stop = span
    cuts = []
    for i in range(start // chunk, -(-stop // chunk)):
        begin = i * chunk
        low, high = max(start, begin), min(stop, begin + chunk)
        cuts.append((i, slice(low - begin, high - begin), slice(low - start, high - start)))
    return cuts


def _count(part: np.ndarray) -> list[list[int]]:
    labels, counts = np.unique(part, return_counts=True)
    return [[int(label), int(count)] for label, count in zip(labels, counts, strict=True)]


def _in_memory(content: bytes | memoryview) -> Region:
    view = memoryview(content)
    return Region(len(view), lambda offset, size: view[offset : offset + size])
