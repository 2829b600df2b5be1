"""NIfTI, NRRD, MHA and .npy as people have them: units, scales, tails and headers that say too little or too much."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from inflate3d.data.raw.readers import Volume, read_volume
from inflate3d.errors import InputError

AXES = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)  # x y z


def kinds(volume: Volume) -> set[str]:
    return {fact.kind for fact in volume.noticed}


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_volume(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def nifti(path: Path, array: np.ndarray = AXES, affine: Any = None, **fields: Any) -> Path:
    """A single file with header fields set as they are given, after the affine."""
    image = nib.Nifti1Image(array, np.diag([2.0, 3, 4, 1]) if affine is None else affine)
    image.set_qform(image.affine, 1)
    raw = image.to_bytes()
    header = nib.Nifti1Header(raw[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock + raw[348:]
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


# --------------------------------------------------------------------------------------------------------------- units


@pytest.mark.parametrize(("code", "factor"), [(0, 1.0), (1, 1e3), (2, 1.0), (3, 1e-3), (3 + 8, 1e-3), (1 + 16, 1e3)])
def test_nifti_lengths_are_millimetres_whatever_their_unit(tmp_path: Path, code: int, factor: float) -> None:
    affine = np.diag([200.0, 300, 400, 1])
    affine[:3, 3] = (10, 20, 30)
    volume = read_volume(nifti(tmp_path / "a.nii.gz", affine=affine, xyzt_units=code))
    np.testing.assert_allclose(volume.spacing_mm, factor * np.array([400, 300, 200]))
    np.testing.assert_allclose(np.array(volume.affine)[:3, 3], factor * np.array([10, 20, 30]))
    assert ("units converted" in kinds(volume)) == (factor != 1)
    assert ("unit unstated" in kinds(volume)) == (code == 0)


def test_nifti_units_beyond_lengths_are_refused(tmp_path: Path) -> None:
    assert "xyzt_units states the unit of length 5" in refused(nifti(tmp_path / "a.nii", xyzt_units=5))


def test_microns_are_resampled_as_millimetres(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", affine=np.diag([400.0, 400, 400, 1]), xyzt_units=3)
    assert read_volume(path, spacing_mm=(0.8, 0.8, 0.8)).array.shape == (1, 3, 2, 2)


def nrrd(path: Path, head: str, *, array: np.ndarray = AXES, encoding: str = "raw", data: bytes | None = None) -> Path:
    sizes = " ".join(map(str, array.shape))
    plain = array.astype("<i2").tobytes(order="F")
    data = data if data is not None else (gzip.compress(plain) if encoding == "gzip" else plain)
    start = f"NRRD0005\ntype: int16\ndimension: {array.ndim}\nsizes: {sizes}\nendian: little\nencoding: {encoding}\n"
    path.write_bytes((start + head + "\n").encode() + data)
    return path


LPS = "space: left-posterior-superior\nspace directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (1,2,3)\n"


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("mm", 1), ("microns", 1e-3), ("um", 1e-3), ("µm", 1e-3), ("cm", 10), ("m", 1e3), ("nm", 1e-6), ("millimeter", 1)],
)
def test_nrrd_and_mha_lengths_are_millimetres(tmp_path: Path, unit: str, factor: float) -> None:
    places = [nrrd(tmp_path / "a.nrrd", LPS + f'space units: "{unit}" "{unit}" "{unit}"\n')]
    places.append(nrrd(tmp_path / "b.nrrd", f'spacings: 2 3 4\nunits: "{unit}" "{unit}" "{unit}"\n'))
    if unit in ("mm", "um", "cm"):
        places.append(mha(tmp_path / "c.mha", f"DistanceUnits = {unit}\nElementSpacing = 2 3 4\n"))
    for path in places:
        volume = read_volume(path)
        np.testing.assert_allclose(volume.spacing_mm, factor * np.array([4, 3, 2]))
        assert ("units converted" in kinds(volume)) == (factor != 1)


def mha(path: Path, head: str, *, data: bytes | None = None) -> Path:
    plain = AXES.astype("<i2").tobytes(order="F")
    start = "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
    start += f"{head}DimSize = 4 5 6\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    path.write_bytes(start.encode() + (plain if data is None else data))
    return path


def test_units_that_are_no_one_length_are_refused(tmp_path: Path) -> None:
    for said in ('"pixels" "pixels" "pixels"', '"mm" "mm" "um"'):
        assert "its units are" in refused(nrrd(tmp_path / "a.nrrd", LPS + f"space units: {said}\n"))


# -------------------------------------------------------------------------------------------------------- nrrd and mha


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("LPS", (-1, -1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
    ],
)
def test_every_anatomical_space_of_nrrd_is_placed(tmp_path: Path, space: str, signs: tuple[int, ...]) -> None:
    head = LPS.replace("left-posterior-superior", space)
    volume = read_volume(nrrd(tmp_path / "a.nrrd", head), orientation=None)
    expected = np.diag(signs) @ np.c_[np.diag([2.0, 3, 4]), [1, 2, 3]]
    np.testing.assert_allclose(np.array(volume.affine)[:3], expected)
    np.testing.assert_array_equal(volume.array[0], AXES.transpose(2, 1, 0))
    assert "place unstated" not in kinds(volume)


def test_spaces_that_say_nothing_of_the_patient_are_noticed(tmp_path: Path) -> None:
    for head in ("spacings: 2 3 4\n", LPS.replace("left-posterior-superior", "scanner-xyz")):
        assert "place unstated" in kinds(read_volume(nrrd(tmp_path / "a.nrrd", head)))
    head = LPS.replace("(0,3,0)", "none")
    assert "three axes need a direction each" in refused(nrrd(tmp_path / "b.nrrd", head))


def test_list_and_vector_axes_of_nrrd_are_channels_first_or_last(tmp_path: Path) -> None:
    pair = np.stack([AXES, AXES + 200])
    for name, array, kinds_, directions in (
        ("a.nrrd", pair, "list domain domain domain", "none (2,0,0) (0,3,0) (0,0,4)"),
        ("b.nrrd", np.moveaxis(pair, 0, -1), "domain domain domain list", "(2,0,0) (0,3,0) (0,0,4) none"),
    ):
        head = f"space: LPS\nspace directions: {directions}\nspace origin: (0,0,0)\nkinds: {kinds_}\n"
        volume = read_volume(nrrd(tmp_path / name, head, array=array), orientation=None)
        np.testing.assert_array_equal(volume.array, pair.transpose(0, 3, 2, 1))
    head = "space: LPS\nspace directions: none (2,0,0) (0,3,0) (0,0,4)\nspace origin: (0,0,0)\n"
    colour = head + "kinds: RGB-color domain domain domain\n"
    assert "voxels of one number" in refused(nrrd(tmp_path / "c.nrrd", colour, array=np.stack([AXES] * 3)))


def test_a_sheared_nrrd_keeps_its_shear_and_says_it(tmp_path: Path) -> None:
    volume = read_volume(nrrd(tmp_path / "a.nrrd", LPS.replace("(0,0,4)", "(0,1,4)")), orientation=None)
    np.testing.assert_allclose(np.array(volume.affine)[:3, 2], (0, -1, 4))
    assert "sheared" in kinds(volume)


def test_mha_intensities_are_scaled_as_the_header_says(tmp_path: Path) -> None:
    head = "ElementSpacing = 2 3 4\nElementToIntensityFunctionSlope = 2\nElementToIntensityFunctionOffset = -5\n"
    volume = read_volume(mha(tmp_path / "a.mha", head), orientation=None)
    np.testing.assert_array_equal(volume.array[0], 2 * AXES.transpose(2, 1, 0) - 5)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_axes_that_mha_names_are_held_against_its_matrix(tmp_path: Path, axes: tuple[int, ...], sign: int) -> None:
    image = sitk.GetImageFromArray(AXES)
    tilt = np.deg2rad(20)
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    image.SetDirection((turn @ np.eye(3)[list(axes)] * [sign, 1, 1]).ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    raw = (tmp_path / "a.mha").read_bytes()
    assert "orientation contradicted" not in kinds(read_volume(tmp_path / "a.mha"))
    start = raw.index(b"AnatomicalOrientation = ") + 24
    opposite = bytes(dict(zip(b"RLAPIS", b"LRPASI", strict=True))[letter] for letter in raw[start : start + 3])
    (tmp_path / "b.mha").write_bytes(raw[:start] + opposite + raw[start + 3 :])
    assert "orientation contradicted" in kinds(read_volume(tmp_path / "b.mha"))
    (tmp_path / "c.mha").write_bytes(raw[:start] + b"???" + raw[start + 3 :])
    assert "orientation contradicted" not in kinds(read_volume(tmp_path / "c.mha"))


def test_axes_that_mha_only_names_are_refused_unless_they_are_what_readers_take(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(AXES), str(tmp_path / "a.mha"))
    raw = (tmp_path / "a.mha").read_bytes()
    plain = b"".join(line for line in raw.splitlines(keepends=True) if not line.startswith(b"TransformMatrix"))
    (tmp_path / "a.mha").write_bytes(plain)
    read_volume(tmp_path / "a.mha")
    (tmp_path / "a.mha").write_bytes(plain.replace(b"AnatomicalOrientation = RAI", b"AnatomicalOrientation = RPI"))
    assert "AnatomicalOrientation is RPI and no TransformMatrix" in refused(tmp_path / "a.mha")


def test_data_cut_short_in_nrrd_and_mha_are_found(tmp_path: Path) -> None:
    plain = AXES.astype("<i2").tobytes(order="F")
    packed, deflated = gzip.compress(plain), zlib.compress(plain)
    for cut in (1, 4, 9, 30):
        assert "truncated" in refused(nrrd(tmp_path / "a.nrrd", LPS, encoding="gzip", data=packed[:-cut]))
        assert "truncated" in refused(nrrd(tmp_path / "b.nrrd", LPS, data=plain[:-cut]))
        assert "truncated" in refused(mha(tmp_path / "c.mha", "ElementSpacing = 2 3 4\n", data=plain[:-cut]))
        head = f"CompressedData = True\nCompressedDataSize = {len(deflated)}\nElementSpacing = 2 3 4\n"
        assert "truncated" in refused(mha(tmp_path / "d.mha", head, data=deflated[:-cut]))
    flipped = bytearray(packed)
    flipped[-6] ^= 1
    refused(nrrd(tmp_path / "e.nrrd", LPS, encoding="gzip", data=bytes(flipped)))
    whole = read_volume(nrrd(tmp_path / "f.nrrd", LPS, encoding="gzip", data=packed + b"\r\nmore"), orientation=None)
    np.testing.assert_array_equal(whole.array[0], AXES.transpose(2, 1, 0))


# --------------------------------------------------------------------------------------------------------------- tails


@pytest.mark.parametrize("tail", [b"\r\n", b"x", b"\0\0tail", bytes(range(1, 200)) * 40, b"\x1f", b"PK\3\4" * 10])
def test_bytes_after_a_whole_gzip_member_are_noticed_and_no_data(tmp_path: Path, tail: bytes) -> None:
    path = nifti(tmp_path / "a.nii.gz")
    path.write_bytes(path.read_bytes() + tail)
    volume = read_volume(path, orientation=None)
    np.testing.assert_array_equal(volume.array[0], AXES.transpose(2, 1, 0))
    assert "bytes after the data" in kinds(volume)


def test_a_damaged_second_member_is_no_tail(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz")
    raw = gzip.decompress(path.read_bytes())
    second = bytearray(gzip.compress(raw[400:]))
    second[-5] ^= 4
    path.write_bytes(gzip.compress(raw[:400]) + bytes(second))
    refused(path)


def test_more_voxels_than_the_header_states_are_refused(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz"):
        path = nifti(tmp_path / name)
        content = path.read_bytes() if name == "a.nii" else gzip.decompress(path.read_bytes())
        for more, is_tail in ((b"\r\n", True), (bytes(4096), None), (content[352:392], False)):
            longer = content + more
            path.write_bytes(longer if name == "a.nii" else gzip.compress(longer))
            if is_tail is False:
                assert "a slice or more" in refused(path)
            else:
                assert ("bytes after the data" in kinds(read_volume(path))) == bool(is_tail)


# --------------------------------------------------------------------------------------------------- scales and labels


@pytest.mark.parametrize(("slope", "inter"), [(0.0, 5.0), (np.nan, np.nan), (np.nan, 3.0), (0.0, np.nan), (1.0, 0.0)])
def test_no_slope_means_stored_values(tmp_path: Path, slope: float, inter: float) -> None:
    volume = read_volume(nifti(tmp_path / "a.nii", scl_slope=slope, scl_inter=inter), orientation=None)
    np.testing.assert_array_equal(volume.array[0], AXES.transpose(2, 1, 0))
    assert volume.array.dtype == np.int16


@pytest.mark.parametrize(("slope", "inter"), [(2.0, np.nan), (np.inf, 0.0), (-np.inf, 0.0), (2.0, np.inf)])
def test_a_slope_that_gives_no_values_is_refused(tmp_path: Path, slope: float, inter: float) -> None:
    refused(nifti(tmp_path / "a.nii", scl_slope=slope, scl_inter=inter))


@pytest.mark.parametrize("stored", ["u1", "i2", ">i2", "u2", "i4", "f4", ">f8"])
@pytest.mark.parametrize(("slope", "inter"), [(1.0, -1024.0), (0.5, 0.25), (1 / 255, 0.0), (3e4, 7.0)])
def test_scaled_values_equal_nibabels(tmp_path: Path, stored: str, slope: float, inter: float) -> None:
    path = nifti(tmp_path / "a.nii", AXES.astype(stored), scl_slope=slope, scl_inter=inter)
    expected = np.asanyarray(nib.load(path).dataobj, np.float64)
    volume = read_volume(path, orientation=None)
    np.testing.assert_array_equal(volume.array[0].transpose(2, 1, 0), expected.astype(np.float32))
    is_whole = (expected == np.rint(expected)).all() and np.abs(expected).max() < 2**15
    assert volume.array.dtype == (np.int16 if is_whole else np.float32)


@pytest.mark.parametrize("error", [0, 6e-8, 1e-5, 9e-4, -9e-4])
def test_labels_may_be_rounded(tmp_path: Path, error: float) -> None:
    labels = np.random.default_rng(0).integers(0, 4, (6, 7, 8))
    path = nifti(tmp_path / "a.nii", (labels + error).astype(np.float64))
    np.testing.assert_array_equal(read_volume(path, is_mask=True, orientation=None).array[0], labels.transpose(2, 1, 0))


def test_a_scaled_label_is_whole_and_a_probability_is_not(tmp_path: Path) -> None:
    mask = np.zeros((6, 6, 6), np.uint8)
    mask[2:4, 2:4, 2:4] = 255
    path = nifti(tmp_path / "a.nii.gz", mask, scl_slope=1 / 255, scl_inter=0)
    assert read_volume(path, is_mask=True).array.sum() == 8
    half = np.zeros((6, 6, 6), np.float32)
    half[3, 3, 3] = 1.002
    for value in (half, half + 0.4, half * 0.5):
        assert "probability map" in refused(nifti(tmp_path / "b.nii", value), is_mask=True)
    for value, words in ((half + 255, "0 to 255"), (half - 1, "0 to 255")):
        assert words in refused(nifti(tmp_path / "b.nii", np.rint(value)), is_mask=True)


# ---------------------------------------------------------------------------------------------------- headers and axes


@pytest.mark.parametrize("shape", [(4, 5, 6, 1), (4, 5, 6, 1, 1), (4, 5, 6, 1, 1, 1), (4, 5, 6, 1, 1, 1, 1)])
def test_axes_of_size_one_are_no_axes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    volume = read_volume(nifti(tmp_path / "a.nii", AXES.reshape(shape)), orientation=None)
    np.testing.assert_array_equal(volume.array[0], AXES.transpose(2, 1, 0))


@pytest.mark.parametrize("axis", [3, 4, 5])
def test_one_longer_axis_is_channels(tmp_path: Path, axis: int) -> None:
    pair = np.stack([AXES, AXES + 200], -1).reshape((4, 5, 6, *[1] * (axis - 3), 2))
    volume = read_volume(nifti(tmp_path / "a.nii", pair), orientation=None)
    np.testing.assert_array_equal(volume.array[1], 200 + AXES.transpose(2, 1, 0))
    both = np.zeros((4, 5, 6, 2, 3), np.int16)
    assert "5-D" in refused(nifti(tmp_path / "b.nii", both))


@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("packed", [True, False])
def test_endianness_version_and_packing_do_not_matter(
    tmp_path: Path, version: Any, order: str, name: str, packed: bool
) -> None:
    header = version.header_class(endianness=order)
    header.set_data_dtype(np.float64)
    content = version(AXES + 70000.5, np.diag([-1.0, 1, 2, 1]), header).to_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.array[0], AXES[::-1].transpose(2, 1, 0) + np.float32(70000.5))


def test_places_that_disagree_are_noticed_with_the_distance(tmp_path: Path) -> None:
    image = nib.Nifti1Image(AXES, np.eye(4))
    moved = np.eye(4)
    moved[:3, 3] = (10, -5, 3)
    image.set_sform(moved, 2)
    image.set_qform(np.eye(4), 1)
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii", orientation=None)
    np.testing.assert_array_equal(np.array(volume.affine), moved)
    (told,) = [text for kind, text in volume.noticed if kind == "two places"]
    assert told == "sform and qform differ by up to 11.6 mm; the sform is taken"
    path = nifti(tmp_path / "b.nii", pixdim=[1, 9, 9, 9, 0, 0, 0, 0], qform_code=0)
    assert "two voxel sizes" in kinds(read_volume(path))
    assert "place unstated" in kinds(read_volume(nifti(tmp_path / "c.nii", qform_code=0, sform_code=0)))


def test_the_qform_counts_where_no_sform_is_set(tmp_path: Path) -> None:
    affine = np.array([[0, -2.0, 0, 7], [2, 0, 0, 8], [0, 0, 2, 9], [0, 0, 0, 1]])
    volume = read_volume(nifti(tmp_path / "a.nii", affine=affine, sform_code=0), orientation=None)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)


REFUSALS = {
    "complex.nii": (nib.Nifti1Image(AXES.astype(np.complex64), np.eye(4)), "complex64"),
    "rgb.nii": (nib.Nifti1Image(np.zeros((6, 6, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")]), np.eye(4)), "voxels of"),
    "flat.nii": (nib.Nifti1Image(AXES[:, :, 0], np.eye(4)), "2-D"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_no_volume_is_refused(tmp_path: Path, name: str) -> None:
    image, words = REFUSALS[name]
    nib.save(image, tmp_path / name)
    assert words in refused(tmp_path / name)


def test_an_sform_of_zeros_is_refused(tmp_path: Path) -> None:
    zeros = {f"srow_{axis}": [0, 0, 0, 0] for axis in "xyz"}
    assert "affine is not invertible" in refused(nifti(tmp_path / "a.nii", sform_code=2, **zeros))


def test_files_that_are_something_else_say_what_to_do(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(AXES[0]), str(tmp_path / "a.dcm"))
    nib.save(nib.Nifti1Pair(AXES, np.eye(4)), tmp_path / "a.img")
    assert "convert such a pair" in refused(tmp_path / "a.img")
    assert "give the folder of its series" in refused(tmp_path / "a.dcm")
    (tmp_path / "b.nii.gz").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in refused(tmp_path / "b.nii.gz")
    (tmp_path / "c.nii.gz").symlink_to("../.git/annex/objects/c")
    assert "a link to ../.git/annex/objects/c, which is not there" in refused(tmp_path / "c.nii.gz")
    (tmp_path / "d.nii").write_bytes(b"<html>" + bytes(400))
    assert "is no NIfTI file" in refused(tmp_path / "d.nii")
    (tmp_path / "e.nii").write_bytes(struct.pack("<i", 348) + bytes(600))
    refused(tmp_path / "e.nii")
