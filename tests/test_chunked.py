"""Volumes in chunks: any part equals the array, any reader opens the file, and nothing damaged reaches the decoder."""

from __future__ import annotations

import json

import blosc2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inflate3d.data.samples.chunked import ChunkedArray, Region, encode_chunked

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(0, 60, (2, 37, 41, 50)).astype(np.int16)
IMAGE[1, :16] = 7  # chunks of one value
MASK = np.zeros((37, 41, 50), np.uint8)
MASK[10:30, 5:25, 12:44] = RNG.integers(0, 3, (20, 20, 32))


def encoded(array: np.ndarray, **options: object) -> tuple[bytes, dict]:
    content, table = encode_chunked(array, chunk=16, **options)  # type: ignore[arg-type]
    return content, json.loads(json.dumps(table))


@pytest.mark.parametrize("array", [IMAGE, MASK, IMAGE.astype(np.float32) / 3])
def test_the_whole_comes_back_and_blosc2_reads_the_file(array: np.ndarray) -> None:
    content, table = encoded(array, is_mask=array is MASK)
    np.testing.assert_array_equal(np.asarray(ChunkedArray(content, table)), array)
    np.testing.assert_array_equal(blosc2.ndarray_from_cframe(content)[:], array)
    assert encoded(array, is_mask=array is MASK) == (content, table)


@pytest.mark.slow
@given(st.tuples(*[st.tuples(st.integers(0, n), st.integers(0, n)).map(sorted) for n in IMAGE.shape[1:]]))
@settings(max_examples=25, deadline=None)
def test_any_box_equals_the_arrays(spans: tuple[list[int], ...]) -> None:
    d, h, w = (slice(a, b) for a, b in spans)
    np.testing.assert_array_equal(ChunkedArray(*encoded(IMAGE))[..., d, h, w], IMAGE[..., d, h, w])


def test_a_patch_reads_only_its_chunks() -> None:
    content, table = encoded(IMAGE)
    taken: list[int] = []

    def read(offset: int, size: int) -> memoryview:
        taken.append(size)
        return memoryview(content)[offset : offset + size]

    ChunkedArray(Region(len(content), read), table)[..., 16:32, 16:32, 16:32]
    assert len(taken) == 2  # one chunk a channel
    assert sum(taken) < len(content) / 8


def test_statistics_and_voxels_come_without_decoding_all() -> None:
    image = ChunkedArray(*encoded(IMAGE))
    np.testing.assert_allclose(image.moments()[0], IMAGE.reshape(2, -1).mean(1))
    np.testing.assert_allclose(image.moments()[1], IMAGE.reshape(2, -1).std(1))
    np.testing.assert_array_equal(image.min(), IMAGE.min(axis=(1, 2, 3), keepdims=True))
    mask = ChunkedArray(*encoded(MASK, is_mask=True))
    assert mask.voxels(2) == (MASK == 2).sum()
    found = {mask.voxel(2, n) for n in range(mask.voxels(2))}
    assert found == {tuple(v) for v in np.argwhere(MASK == 2).tolist()}  # each once: an even draw stays even


def test_every_damage_of_a_chunk_or_its_table_is_found() -> None:
    content, table = encoded(MASK, is_mask=True)
    for offset, size, _ in table["places"]:
        for position in (offset, offset + size // 2, offset + size - 1) if size else ():
            broken = bytearray(content)
            broken[position] ^= 1
            with pytest.raises(ValueError, match="differs"):
                np.asarray(ChunkedArray(bytes(broken), table))
    with pytest.raises(ValueError, match="outside its member"):
        np.asarray(ChunkedArray(content[:-200], table))
    wrong = {"shape": [10**6] * 3, "chunk": [10**6] * 3, "dtype": "object", "places": [[0, 10, "0" * 16]]}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match="chunk"):
            np.asarray(ChunkedArray(content, {**table, name: value}))
    with pytest.raises(ValueError, match="described wrongly"):
        ChunkedArray(content, {})
