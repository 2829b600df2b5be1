"""Any affine, type, scale and order of slices: every voxel comes back at its point with its value, or is refused."""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_slice
from inflate3d.data.raw.readers import Volume, read_volume
from inflate3d.errors import InputError
from nightly import draws

NIFTI_TYPES = ("u1", "i1", "i2", "u2", "i4", "f4", "f8")
DICOM_TYPES = ("u1", "i2", "u2")


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """A turn: none, in one plane, or any; always with its axes permuted and flipped at random."""
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    t = rng.uniform(-0.7, 0.7)
    plane = np.array([[np.cos(t), -np.sin(t), 0], [np.sin(t), np.cos(t), 0], [0, 0, 1]])
    turn = (np.eye(3), plane, q)[rng.integers(3)]
    return turn @ np.eye(3)[rng.permutation(3)] @ np.diag(rng.choice([-1, 1], 3))


def random_affine(rng: np.random.Generator) -> np.ndarray:
    """Oblique, sheared, flipped and permuted, with unlike voxel sizes."""
    affine = np.eye(4)
    shear = np.eye(3)
    if rng.random() < 0.4:
        shear[0, 2], shear[1, 2] = rng.uniform(-0.4, 0.4, 2)
    affine[:3, :3] = random_rotation(rng) @ np.diag(rng.uniform(0.3, 4, 3)) @ shear
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return affine


def random_values(rng: np.random.Generator, shape: tuple[int, ...], stored: str) -> np.ndarray:
    dtype = np.dtype(stored)
    if dtype.kind == "f":
        return rng.normal(0, 1000, shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(max(info.min, -(2**20)), min(info.max, 2**20), shape, endpoint=True).astype(dtype)


def assert_holds(volume: Volume, values_XYZ: np.ndarray, affine_ras: np.ndarray) -> None:
    """Every voxel of a grid is found at its millimetres with its value as float32; and there are no others."""
    index = np.argwhere(np.ones(values_XYZ.shape, bool))
    millimetres = np.c_[index, np.ones(len(index))] @ affine_ras.T
    found = millimetres @ np.linalg.inv(np.array(volume.affine)).T
    whd = np.rint(found[:, :3]).astype(int)
    np.testing.assert_allclose(found[:, :3], whd, atol=2e-3)
    assert volume.array.size == values_XYZ.size
    assert len(np.unique(whd, axis=0)) == len(whd)
    assert whd.min() >= 0
    got = volume.array[0, whd[:, 2], whd[:, 1], whd[:, 0]].astype(np.float32)
    np.testing.assert_array_equal(got, values_XYZ[tuple(index.T)].astype(np.float32))


@pytest.mark.parametrize("seeds", draws(500, 30))
def test_a_nifti_comes_back_voxel_by_voxel(tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        (folder := tmp_path / str(seed)).mkdir()
        check_nifti(folder, seed)


def check_nifti(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 7, 3))
    stored = random_values(rng, shape, NIFTI_TYPES[rng.integers(len(NIFTI_TYPES))])
    affine = random_affine(rng)
    image_class = (nib.Nifti1Image, nib.Nifti2Image)[rng.integers(2)]
    header = image_class.header_class(endianness="<>"[rng.integers(2)])
    header.set_data_dtype(stored.dtype)
    image = image_class(stored, affine, header)
    unit, factor = (("mm", 1.0), ("micron", 1e-3), ("meter", 1e3))[rng.choice(3, p=[0.6, 0.3, 0.1])]
    image.header.set_xyzt_units(unit)
    raw = bytearray(image.to_bytes())
    slope, inter = ((1.0, 0.0), (0.5, -7.25), (float(np.float32(rng.uniform(1e-3, 9))), 3.0))[rng.integers(3)]
    raw_header = image_class.header_class(bytes(raw[: header.template_dtype.itemsize]))
    raw_header["scl_slope"], raw_header["scl_inter"] = slope, inter
    raw[: header.template_dtype.itemsize] = raw_header.binaryblock
    path = tmp_path / "a.nii"
    path.write_bytes(bytes(raw))
    orientation = (None, "RAS", "LPS", "SAR")[rng.integers(4)]
    values = stored if (slope, inter) == (1.0, 0.0) else stored.astype(np.float64) * slope + inter
    written = np.diag([factor, factor, factor, 1]) @ nib.load(path).affine
    assert_holds(read_volume(path, orientation=orientation), values, written)


def write_random_series(rng: np.random.Generator, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write a series with any turn, tilt, type and scale in any order; return the values, the affine and heights."""
    columns, rows, count = (int(n) for n in rng.integers(2, 6, 3))
    turn = random_rotation(rng)
    row, column = turn[:, 0], turn[:, 1]
    spacing = rng.uniform(0.4, 2, 2).round(3)
    step = np.cross(row, column) * rng.uniform(0.5, 6) * rng.choice([-1, 1])
    if rng.random() < 0.4:
        step = step + rng.uniform(-0.5, 0.5) * row + rng.uniform(-0.5, 0.5) * column
    origin = rng.uniform(-100, 100, 3)
    stored = random_values(rng, (count, rows, columns), DICOM_TYPES[rng.integers(len(DICOM_TYPES))])
    slopes = np.full(count, 1.0) if rng.random() < 0.4 else rng.choice([0.5, 1.0, 2.0, 1.25], count)
    inters = np.full(count, float(rng.integers(-1024, 10)))
    numbers, names = rng.permutation(count), rng.permutation(count)
    for i in range(count):
        words = {
            "ImageOrientationPatient": [f"{v:.10f}" for v in (*row, *column)],
            "PixelSpacing": [float(spacing[1]), float(spacing[0])],
            "RescaleSlope": slopes[i],
            "RescaleIntercept": inters[i],
            "PhotometricInterpretation": ("MONOCHROME1", "MONOCHROME2")[rng.integers(2)],
        }
        place = [float(f"{v:.6f}") for v in origin + i * step]
        write_slice(folder, int(numbers[i]), stored[i], place, name=f"{names[i]}.dcm", **words)
    affine = np.eye(4)
    affine[:3, :3] = np.c_[row * spacing[0], column * spacing[1], step]
    affine[:3, 3] = origin
    values = stored * slopes[:, None, None] + inters[:, None, None]
    return values.transpose(2, 1, 0), np.diag([-1.0, -1, 1, 1]) @ affine, names


@pytest.mark.parametrize("seeds", draws(500, 30))
def test_a_dicom_series_comes_back_voxel_by_voxel_or_is_refused(tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        (folder := tmp_path / str(seed)).mkdir()
        check_dicom_series(folder, seed)


def check_dicom_series(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(10_000 + seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values, affine, names = write_random_series(rng, tmp_path)
    count = len(names)
    if count >= 4 and rng.random() < 0.3:
        missing = int(rng.integers(1, count - 1))
        (tmp_path / f"{names[missing]}.dcm").unlink()
        with pytest.raises(InputError, match=r"missing between|not evenly spaced") as caught:
            read_volume(tmp_path)
        assert str(caught.value).startswith(str(tmp_path))
        return
    orientation = (None, "RAS", "LPS", "AIL")[rng.integers(4)]
    assert_holds(read_volume(tmp_path, orientation=orientation), values, affine)
