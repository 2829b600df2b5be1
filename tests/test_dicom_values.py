"""Values of DICOM series: what each frame's own numbers, table and syntax say, or a refusal by name."""

from __future__ import annotations

import base64
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import (
    PET,
    at_mm,
    change,
    item,
    kinds,
    refused,
    write_series,
    write_slice,
)
from inflate3d.data.raw.readers import read_volume
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)


def test_slope_and_intercept_are_each_slices_own(tmp_path: Path) -> None:
    for i in range(8):
        array = np.full((4, 4), 9, np.uint16)
        scale = {"RescaleSlope": 1 + i / 2, "RescaleIntercept": -i}
        write_slice(tmp_path, i, array, (0, 0, 5 * i), sop_class=PET, **scale)
    volume = read_volume(tmp_path)
    assert [at_mm(volume, 0, 0, 5 * i) for i in range(8)] == [9 * (1 + i / 2) - i for i in range(8)]
    (told,) = [fact.text for fact in volume.noticed if fact.kind == "rescaled by slice"]
    assert told == "8 slopes and intercepts, slopes 1 to 4.5"


def test_monochrome1_keeps_its_values_and_is_said(tmp_path: Path) -> None:
    volume = read_volume(write_series(tmp_path, PhotometricInterpretation="MONOCHROME1"))
    assert at_mm(volume, 4, 5, 25) == 529
    assert "inverted" in kinds(volume)


@pytest.mark.parametrize(("stored", "high"), [(12, 11), (12, 15), (10, 11)])
@pytest.mark.parametrize("signed", [True, False])
def test_only_the_bits_stored_count(tmp_path: Path, stored: int, high: int, signed: bool) -> None:
    for i in range(3):
        value = -100 + i if signed else 300 + i
        bits = (value & (2**stored - 1)) << (high + 1 - stored)
        rubbish = 0xFFFF & ~(((1 << stored) - 1) << (high + 1 - stored))
        array = np.full((4, 4), bits, np.uint16)
        array[::2] |= rubbish
        more = {"BitsStored": stored, "HighBit": high, "PixelRepresentation": int(signed)}
        write_slice(tmp_path, i, array.view(np.int16) if signed else array, (0, 0, 5 * i), **more)
    volume = read_volume(tmp_path)
    assert [np.unique(s).tolist() for s in volume.array[0]] == [[(-100 if signed else 300) + i] for i in range(3)]


def test_signed_and_unsigned_slices_of_one_series_keep_their_values(tmp_path: Path) -> None:
    write_slice(tmp_path, 0, np.full((4, 4), -5, np.int16), (0, 0, 0))
    write_slice(tmp_path, 1, np.full((4, 4), 40000, np.uint16), (0, 0, 5))
    write_slice(tmp_path, 2, np.full((4, 4), 200, np.uint8), (0, 0, 10))
    assert read_volume(tmp_path).array[0, :, 0, 0].tolist() == [-5, 40000, 200]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"RescaleSlope": 0}, "give no values"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is in colour (PALETTE COLOR"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "is a mosaic"),
        ({"ModalityLUTSequence": [item(LUTDescriptor=[2, 0, 16])]}, "its table of values (0028,3000) cannot be"),
        ({"ModalityLUTSequence": [item()], "RescaleSlope": 1}, "a table of values (0028,3000) and a rescale slope"),
        ({"BitsStored": 17}, "its pixels (Explicit VR Little Endian) cannot be read"),
    ],
)
def test_values_that_are_no_grey_values_are_refused(tmp_path: Path, more: dict, message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_series(tmp_path, **more)
    assert message in refused(tmp_path)


@pytest.mark.parametrize("first", [-30_000, 0, 250])
def test_a_table_of_values_gives_its_entries_and_its_ends_beyond(tmp_path: Path, first: int) -> None:
    entries = [7 + i * i % 60_000 for i in range(300)]
    table = item(LUTDescriptor=[300, first, 16], LUTData=entries, ModalityLUTType="OD")
    table["LUTDescriptor"].VR, table["LUTData"].VR = "SS", "US"
    volume = read_volume(write_series(tmp_path, ModalityLUTSequence=[table]))
    stored = 100 * np.arange(6)[:, None, None] + np.arange(30).reshape(6, 5)
    expected = [[[entries[min(max(v - first, 0), 299)] for v in row] for row in plane] for plane in stored.tolist()]
    np.testing.assert_array_equal(volume.array[0, :, ::-1, ::-1], expected)  # LPS, turned to RAS


def test_units_that_differ_by_slice_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path, RescaleType="HU")
    change(tmp_path / "IM0004.dcm", RescaleType="US")
    assert "IM0004.dcm has the unit of values US, the others HU" in refused(tmp_path)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless]
)
def test_transfer_syntaxes_hold_the_same_values(tmp_path: Path, syntax: str) -> None:
    expected = read_volume(write_series(tmp_path / "plain", RescaleSlope=2, RescaleIntercept=-1000)).array
    folder = write_series(tmp_path / "other", RescaleSlope=2, RescaleIntercept=-1000)
    for path in folder.iterdir():
        d = pydicom.dcmread(path)
        if syntax == RLELossless:
            d.compress(syntax, generate_instance_uid=False)
            d.save_as(path)
            continue
        if syntax == ExplicitVRBigEndian:
            d.PixelData = d.pixel_array.astype(">i2").tobytes()
        d.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(path, d, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=syntax.is_little_endian)
    np.testing.assert_array_equal(read_volume(folder).array, expected)


def test_jpeg_2000_is_read_by_itk_with_each_slices_own_slope(tmp_path: Path) -> None:
    for i in range(4):
        array = (-1000 + 37 * i + np.arange(64 * 64).reshape(64, 64) % 64).astype(np.int16)
        image = sitk.GetImageFromArray(array)
        for key, value in (("0020|000e", "1.2.9"), ("0020|0032", f"0\\0\\{5 * i}"), ("0020|0037", "1\\0\\0\\0\\1\\0")):
            image.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetUseCompression(True)
        writer.SetCompressor("JPEG2000")
        writer.SetFileName(str(tmp_path / f"{i}.dcm"))
        writer.Execute(image)
        change(tmp_path / f"{i}.dcm", RescaleSlope=1 + i, RescaleIntercept=7, PixelSpacing=[1, 1])
    assert pydicom.dcmread(tmp_path / "0.dcm").file_meta.TransferSyntaxUID.is_compressed
    volume = read_volume(tmp_path)
    assert [at_mm(volume, 63, 2, 5 * i) for i in range(4)] == [(1 + i) * (-1000 + 37 * i + 63) + 7 for i in range(4)]


# What `write_series` writes in its first three slices, as pyjpegls 1.5.1 encodes it.
JPEG_LS = (
    "/9j/9wALEAAGAAUBAREA//gADQH//wASAEMBFABA/9oACAEBAAAAAKAMAYAwDAqAUAIAgFBEBgMBgBBoGBgYAhoGBgYAhoMGDAD/2Q==",
    "/9j/9wALEAAGAAUBAREA//gADQH//wASAEMBFABA/9oACAEBAAAAAEx4AwBgGAYFQCgBAEAoIgMBgMAINAwMDAENAwMDAENBgwYA/9kA",
    "/9j/9wALEAAGAAUBAREA//gADQH//wASAEMBFABA/9oACAEBAAAAAFj4AwBgGAYFQCgBAEAoIgMBgMAINAwMDAENAwMDAENBgwYA/9kA",
)


def test_jpeg_ls_is_read_by_itk(tmp_path: Path) -> None:
    expected = read_volume(write_series(tmp_path / "plain", 3, RescaleSlope=2, RescaleIntercept=-1000)).array
    folder = write_series(tmp_path / "packed", 3, RescaleSlope=2, RescaleIntercept=-1000)
    for path, frame in zip(sorted(folder.iterdir()), JPEG_LS, strict=True):
        d = pydicom.dcmread(path)
        d.file_meta.TransferSyntaxUID = JPEGLSLossless
        d.PixelData = pydicom.encaps.encapsulate([base64.b64decode(frame)])
        d["PixelData"].VR = "OB"
        d.save_as(path)
    np.testing.assert_array_equal(read_volume(folder).array, expected)


def test_a_syntax_without_a_decoder_is_named(tmp_path: Path) -> None:
    write_series(tmp_path)
    d = pydicom.dcmread(tmp_path / "IM0002.dcm")
    d.file_meta.TransferSyntaxUID = HTJ2KLossless
    d.PixelData = pydicom.encaps.encapsulate([d.PixelData])
    d["PixelData"].VR = "OB"
    d.save_as(tmp_path / "IM0002.dcm")
    assert "IM0002.dcm: its pixels (High-Throughput JPEG 2000" in refused(tmp_path)
