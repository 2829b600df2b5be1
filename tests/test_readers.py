"""Readers: known voxels arrive where the stated orientation and spacing put them; broken files are named."""

from __future__ import annotations

import gzip
import itertools
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from inflate3d.data.raw.pairs import check_pair
from inflate3d.data.raw.readers import Volume, read_volume, write_nifti
from inflate3d.errors import InputError

SHAPE_XYZ = (5, 6, 7)
ORIENTATIONS = [
    "".join(letters) for axes in itertools.permutations(("LR", "PA", "IS")) for letters in itertools.product(*axes)
]


def numbered(shape: tuple[int, ...], dtype: type = np.int16) -> np.ndarray:
    """An array in which every voxel has a value of its own."""
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def affine_of(codes: str, spacing_xyz: tuple[float, float, float] = (1.0, 2.0, 3.0)) -> np.ndarray:
    """The affine of a file whose axes grow to `codes`."""
    affine = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(tuple(codes)), SHAPE_XYZ)
    return np.array(affine) @ np.diag([*spacing_xyz, 1.0]) + np.array([[0, 0, 0, 11.0]] * 3 + [[0] * 4])


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def world_by_value(array_XYZ: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Millimetres of each voxel, in the order of the voxels' values."""
    index = np.argwhere(np.ones(array_XYZ.shape, bool))
    order = np.argsort(array_XYZ.ravel())
    return (np.c_[index, np.ones(len(index))] @ affine.T)[order, :3]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_voxel_keeps_its_place_from_any_orientation(tmp_path: Path, codes: str) -> None:
    stored, affine = numbered(SHAPE_XYZ), affine_of(codes)
    volume = read_volume(save(tmp_path / "a.nii.gz", stored, affine))
    assert "".join(nib.aff2axcodes(np.array(volume.affine))) == "RAS"
    arrived_XYZ = volume.array[0].transpose(2, 1, 0)
    np.testing.assert_allclose(
        world_by_value(arrived_XYZ, np.array(volume.affine)), world_by_value(stored, affine), atol=1e-5
    )
    size_mm = sorted(zip(stored.shape, (1.0, 2.0, 3.0), strict=True))
    assert sorted(zip(volume.array.shape[:0:-1], volume.spacing_mm[::-1], strict=True)) == size_mm


def test_an_lps_file_puts_the_patients_right_at_the_end_of_w(tmp_path: Path) -> None:
    stored = np.zeros(SHAPE_XYZ, np.uint8)
    stored[0, 0, 6] = 7  # L P S: index 0 along x is the right, 0 along y the front
    volume = read_volume(save(tmp_path / "a.nii", stored, np.diag([-1.0, -1.0, 1.0, 1.0])))
    assert np.argwhere(volume.array[0] == 7).tolist() == [[6, 5, 4]]  # D up, H to the front, W to the right


def test_an_oblique_file_keeps_its_rotation_and_its_voxels(tmp_path: Path) -> None:
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    stored, affine = numbered(SHAPE_XYZ), turn @ affine_of("LPS")
    volume = read_volume(save(tmp_path / "a.nii", stored, affine))
    got = world_by_value(volume.array[0].transpose(2, 1, 0), np.array(volume.affine))
    np.testing.assert_allclose(got, world_by_value(stored, affine), atol=1e-4)
    np.testing.assert_allclose(volume.spacing_mm, (3, 2, 1), rtol=1e-6)


def test_orientation_none_leaves_the_axes_as_stored(tmp_path: Path) -> None:
    stored = numbered(SHAPE_XYZ)
    volume = read_volume(save(tmp_path / "a.nii", stored, affine_of("PIR")), orientation=None)
    np.testing.assert_array_equal(volume.array[0], stored.transpose(2, 1, 0))


@pytest.mark.parametrize("suffix", ["nii.gz", "nrrd", "mha"])
def test_itk_and_nibabel_agree_on_place_and_values(tmp_path: Path, suffix: str) -> None:
    image = sitk.GetImageFromArray(numbered((4, 5, 6)))
    image.SetSpacing((0.5, 1.5, 2.5))
    image.SetOrigin((10.0, -20.0, 30.0))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / f"a.{suffix}"))
    volume = read_volume(tmp_path / f"a.{suffix}")
    for index in [(0, 0, 0), (5, 4, 3), (2, 3, 1)]:
        left, posterior, superior = image.TransformIndexToPhysicalPoint(index)
        place = np.linalg.solve(np.array(volume.affine), [-left, -posterior, superior, 1.0])
        w, h, d = np.rint(place[:3]).astype(int)
        assert volume.array[0, d, h, w] == image[index]


def test_channels_come_first_from_every_format(tmp_path: Path) -> None:
    stored = numbered((3, 4, 5, 2))
    sitk.WriteImage(sitk.GetImageFromArray(stored.transpose(2, 1, 0, 3), isVector=True), str(tmp_path / "a.mha"))
    expected = stored.transpose(3, 2, 1, 0)
    for path in (save(tmp_path / "a.nii", stored), save(tmp_path / "b.nii", stored[:, :, :, None]), tmp_path / "a.mha"):
        np.testing.assert_array_equal(read_volume(path, orientation=None).array, expected)
    np.save(tmp_path / "a.npy", expected)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.npy").array, expected)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [("u1", "u1"), ("i2", "i2"), (">i2", "i2"), ("u2", "i2"), ("i4", "i2"), ("f4", "i2"), ("f8", "i2")],
)
def test_whole_values_stay_small_integers(tmp_path: Path, stored: str, expected: str) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(stored)
    volume = read_volume(save(tmp_path / "a.nii", values))
    assert volume.array.dtype == np.dtype(expected)
    np.testing.assert_array_equal(volume.array[0].transpose(2, 1, 0), values)


def test_fractions_and_large_values_become_float32(tmp_path: Path) -> None:
    assert read_volume(save(tmp_path / "a.nii", np.full((2, 2, 2), 0.5))).array.dtype == np.float32
    assert read_volume(save(tmp_path / "b.nii", np.full((2, 2, 2), 70000, np.int32))).array.dtype == np.float32


def test_a_stored_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.full((2, 2, 2), 1024, np.int16), np.eye(4))
    image.header.set_slope_inter(2.0, -1000.0)
    raw = image.to_bytes()
    header = nib.Nifti1Header(raw[:348])
    header["scl_slope"], header["scl_inter"] = 2.0, -1000.0
    (tmp_path / "a.nii").write_bytes(header.binaryblock + raw[348:])
    expected = np.asanyarray(nib.load(tmp_path / "a.nii").dataobj)
    volume = read_volume(tmp_path / "a.nii")
    assert volume.array.dtype == np.int16
    assert (volume.array == expected[0, 0, 0]).all()


# ------------------------------------------------------------------------------------------------------- resampling


def test_resampling_keeps_a_linear_ramp_in_world_coordinates(tmp_path: Path) -> None:
    affine = affine_of("LPS", (0.7, 1.3, 2.9))
    index = np.moveaxis(np.indices((20, 18, 16)), 0, -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    path = save(tmp_path / "a.nii", (world @ [1.0, 10.0, 100.0]).astype(np.float32), affine)
    volume = read_volume(path, spacing_mm=(2.0, 1.0, 1.0))
    np.testing.assert_allclose(volume.spacing_mm, (2.0, 1.0, 1.0), rtol=1e-5)
    d, h, w = np.meshgrid(*(np.arange(2, n - 2) for n in volume.array.shape[1:]), indexing="ij")
    place = np.stack([w, h, d, np.ones_like(w)], -1) @ np.array(volume.affine).T
    np.testing.assert_allclose(volume.array[0, d, h, w], place[..., :3] @ [1.0, 10.0, 100.0], rtol=1e-3, atol=0.02)


def test_resampling_keeps_the_centre_and_about_the_extent(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.ones((10, 11, 12), np.float32) * 0.5, affine_of("RAS"))
    before, after = read_volume(path), read_volume(path, spacing_mm=(1.7, 1.7, 1.7))
    centres = [np.array(v.affine) @ [*(np.array(v.array.shape[:0:-1]) - 1) / 2, 1] for v in (before, after)]
    np.testing.assert_allclose(*centres, atol=1e-4)
    extents = [np.array(v.array.shape[1:]) * v.spacing_mm for v in (before, after)]
    assert (np.abs(extents[0] - extents[1]) <= 0.5 * 1.7 + 1e-6).all()
    np.testing.assert_allclose(after.array, 0.5)  # no zeros from beyond the border


def test_resampled_masks_hold_only_their_labels(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).choice([0, 3, 9], (9, 9, 9)).astype(np.float32)
    mask = read_volume(save(tmp_path / "a.nii", labels), spacing_mm=(0.6, 0.8, 1.3), is_mask=True)
    assert mask.array.dtype == np.uint8
    assert set(np.unique(mask.array)) == {0, 3, 9}


# -------------------------------------------------------------------------------------------------- the user's faults


def broken(path: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        read_volume(path, **options)  # type: ignore[arg-type]
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_nifti_cut_short_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32))
    whole = path.read_bytes()
    for size in (0, 10, 300, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:size])
        assert "corrupt or truncated" in broken(path)
    raw = save(tmp_path / "a.nii", np.ones((9, 9, 9), np.float32))
    raw.write_bytes(raw.read_bytes()[:-1])
    assert "truncated" in broken(raw)


def test_one_flipped_bit_in_a_compressed_nifti_is_found(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 99, (12, 12, 12)).astype(np.int16))
    whole = path.read_bytes()
    for position in range(40, len(whole), len(whole) // 25):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        broken(path)


def test_a_header_that_promises_terabytes_is_refused_before_allocation(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(1000))
    assert "30000" in broken(tmp_path / "a.nii")
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(1000)))
    assert "30000" in broken(tmp_path / "a.nii.gz")
    lie = (
        "ObjectType = Image\nNDims = 3\nDimSize = 30000 30000 3000\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
    )
    (tmp_path / "a.mha").write_bytes(lie.encode() + bytes(1000))
    assert "30000" in broken(tmp_path / "a.mha")


def test_several_members_and_padding_in_a_gzip_are_read(tmp_path: Path) -> None:
    raw = save(tmp_path / "a.nii", numbered(SHAPE_XYZ)).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(raw[:300]) + gzip.compress(raw[300:]))
    with pytest.raises(InputError):  # the header itself must lie in the first member
        read_volume(tmp_path / "b.nii.gz")
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(raw[:500]) + gzip.compress(raw[500:]) + bytes(64))
    np.testing.assert_array_equal(read_volume(tmp_path / "c.nii.gz").array, read_volume(tmp_path / "a.nii").array)


def test_what_is_no_finite_volume_is_refused(tmp_path: Path) -> None:
    assert "no such file" in broken(tmp_path / "absent.nii")
    (tmp_path / "a.jpg").touch()
    assert "unknown volume format" in broken(tmp_path / "a.jpg")
    assert "2-D" in broken(save(tmp_path / "flat.nii", np.ones((4, 4), np.float32)))
    values = np.ones((3, 3, 3), np.float32)
    values[1, 1, 1] = np.nan
    assert "NaN" in broken(save(tmp_path / "nan.nii", values))
    np.save(tmp_path / "pickle.npy", np.array([{}], object), allow_pickle=True)
    broken(tmp_path / "pickle.npy")
    np.save(tmp_path / "a.npy", np.ones((2, 2, 2)))
    assert "no spacing" in broken(tmp_path / "a.npy", spacing_mm=(1, 1, 1))
    (tmp_path / "empty").mkdir()
    assert "0 DICOM series" in broken(tmp_path / "empty")
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\nnonsense")
    broken(tmp_path / "a.nrrd")
    with pytest.raises(InputError, match="'RAX'"):
        read_volume(save(tmp_path / "a.nii", np.ones((2, 2, 2))), orientation="RAX")


def test_masks_must_hold_whole_small_labels(tmp_path: Path) -> None:
    for value, words in ((0.5, "whole numbers"), (-1, "0 to 255"), (300, "0 to 255"), (np.nan, "0 to 255")):
        path = save(tmp_path / "a.nii", np.full((2, 2, 2), value, np.float32))
        assert words in broken(path, is_mask=True)
    assert "channels" in broken(save(tmp_path / "b.nii", np.ones((2, 2, 2, 3), np.uint8)), is_mask=True)


def test_check_pair_names_shape_label_and_place() -> None:
    image, mask = np.zeros((1, 4, 5, 6), np.uint8), np.zeros((4, 5, 6), np.uint8)
    check_pair(image, mask, ["background", "liver"], where="case a")
    with pytest.raises(InputError, match=r"case a: image is \(4, 5, 6\) and mask \(4, 5, 5\)"):
        check_pair(image, mask[..., 1:], ["background", "liver"], where="case a")
    with pytest.raises(InputError, match=r"case a: mask holds labels \[2, 7\]; allowed: 0 to 1 \(background, liver\)"):
        check_pair(image, mask + np.uint8([0, 1, 1, 7, 2, 0]), ["background", "liver"], where="case a")
    here, there = np.eye(4), np.eye(4)
    there[0, 3] = 5
    volumes = [Volume(a, (1, 1, 1), m.tolist()) for a, m in ((image, here), (mask[None], there))]
    with pytest.raises(InputError, match=r"case a: mask lies up to 5 mm away; at most 0.1 mm"):
        check_pair(*volumes, ["background"], where="case a")


def test_write_nifti_comes_back_the_same(tmp_path: Path) -> None:
    affine = affine_of("RAS").tolist()
    for array in (numbered((4, 5, 6)), numbered((2, 4, 5, 6)), numbered((4, 5, 6), np.float32) / 7):
        first = write_nifti(tmp_path / "a.nii.gz", array, affine).read_bytes()
        volume = read_volume(tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(volume.array, array if array.ndim == 4 else array[None])
        np.testing.assert_allclose(volume.affine, affine)
        assert write_nifti(tmp_path / "a.nii.gz", array, affine).read_bytes() == first


# ---------------------------------------------------------------------------------------------------------- real data


@pytest.mark.data
def test_a_dicom_series_arrives_in_ras(shared_data: Path) -> None:
    volume = read_volume(shared_data / "dicom_ct")
    assert volume.array.shape == (1, 17, 128, 88)
    assert "".join(nib.aff2axcodes(np.array(volume.affine))) == "RAS"
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(shared_data / "dicom_ct" / "IMG0005.dcm"))
    one = reader.Execute()
    left, posterior, superior = one.TransformIndexToPhysicalPoint((3, 7, 0))
    w, h, d = np.rint(np.linalg.solve(np.array(volume.affine), [-left, -posterior, superior, 1])[:3]).astype(int)
    assert volume.array[0, d, h, w] == one[3, 7, 0]


@pytest.mark.data
def test_a_dicom_series_with_a_missing_or_broken_slice_is_refused(shared_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "series"
    shutil.copytree(shared_data / "dicom_ct", folder)
    folder.chmod(0o755)
    (folder / "IMG0008.dcm").unlink()
    assert "a slice is missing" in broken(folder)
    cut = (shared_data / "dicom_ct" / "IMG0008.dcm").read_bytes()
    (folder / "IMG0008.dcm").write_bytes(cut[: len(cut) // 2])
    broken(folder)


@pytest.mark.data
def test_real_float_labels_are_whole(shared_data: Path) -> None:
    folder = shared_data / "Task04_Hippocampus"
    floats = 0
    for path in sorted((folder / "labelsTr").glob("*.nii.gz")):
        if nib.load(path).get_data_dtype() == np.float32:
            floats += 1
            mask, image = read_volume(path, is_mask=True), read_volume(folder / "imagesTr" / path.name)
            check_pair(image, mask, ["background", "anterior", "posterior"], where=path.name)
    assert floats == 2
