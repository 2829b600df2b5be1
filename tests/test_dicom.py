"""DICOM series: every voxel at its place with its value, or a refusal that names the slice and by how much."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import (
    NUCLEAR,
    at_mm,
    change,
    dataset,
    item,
    kinds,
    refused,
    write_enhanced,
    write_series,
    write_slice,
)
from inflate3d.data.raw.dicom_series import holds_dicom
from inflate3d.data.raw.readers import read_volume

# ------------------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize(
    ("orientation", "step"),
    [
        ((1, 0, 0, 0, 1, 0), (0, 0, 5)),
        ((1, 0, 0, 0, 1, 0), (0, 0, -2.5)),
        ((1, 0, 0, 0, 0, -1), (0, 3, 0)),  # coronal
        ((0, 1, 0, 0, 0, -1), (-4, 0, 0)),  # sagittal
        ((0.8, 0.6, 0, -0.6, 0.8, 0), (0, 0, 1.5)),  # oblique
        ((1, 0, 0, 0, 0.96, -0.28), (0, 0, 5)),  # gantry tilt
        ((1, 0, 0, 0, 0.96, -0.28), (0, 0.7, 5)),
        ((0.8, 0.6, 0, 0, 0, 1), (1, 1, 0.5)),
    ],
)
def test_every_voxel_lies_where_its_slice_says(tmp_path: Path, orientation: Any, step: Any) -> None:
    write_series(tmp_path, step=step, ImageOrientationPatient=list(orientation), PixelSpacing=[0.7, 0.5])
    volume = read_volume(tmp_path)
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    for i in range(6):
        for r, c in ((0, 0), (5, 4), (2, 3)):
            place = np.array(step, float) * i + c * 0.5 * row + r * 0.7 * column
            assert at_mm(volume, *place) == 100 * i + 5 * r + c


def test_a_tilted_gantry_is_a_shear_and_said(tmp_path: Path) -> None:
    cosine, sine = np.cos(np.deg2rad(20)), np.sin(np.deg2rad(20))
    write_series(tmp_path, 12, ImageOrientationPatient=[1, 0, 0, 0, cosine, -sine])
    volume = read_volume(tmp_path)
    assert at_mm(volume, 3, 2 * cosine, 55 - 2 * sine) == 1100 + 13
    (told,) = [fact.text for fact in volume.noticed if fact.kind == "tilted"]
    assert told.startswith("slices shift by 20 degrees, 18.8 mm in all")
    assert "sheared" not in kinds(volume)


def test_one_slice_takes_its_thickness_and_two_their_distance(tmp_path: Path) -> None:
    write_slice(tmp_path / "one", 0, np.ones((4, 4), np.int16), (1, 2, 12), PixelSpacing=[0.7, 0.5])
    np.testing.assert_allclose(read_volume(tmp_path / "one").spacing_mm, (5, 0.7, 0.5))
    write_slice(tmp_path / "two", 0, np.full((4, 4), 1, np.int16), (0, 0, 12))
    write_slice(tmp_path / "two", 1, np.full((4, 4), 2, np.int16), (0, 0, 0))
    two = read_volume(tmp_path / "two")
    np.testing.assert_allclose(two.spacing_mm, (12, 1, 1))
    assert (at_mm(two, 0, 0, 0), at_mm(two, 0, 0, 12)) == (2, 1)
    write_slice(tmp_path / "flat", 0, np.ones((4, 4), np.int16), SliceThickness=None)
    assert "without SliceThickness" in refused(tmp_path / "flat")


def moved(i: int, position: tuple[float, float, float]) -> Callable[[Path], Any]:
    return lambda folder: change(folder / f"IM{i:04d}.dcm", ImagePositionPatient=list(position))


def turned(i: int, orientation: list[float]) -> Callable[[Path], Any]:
    return lambda folder: change(folder / f"IM{i:04d}.dcm", ImageOrientationPatient=orientation)


def removed(*numbers: int) -> Callable[[Path], Any]:
    return lambda folder: [(folder / f"IM{i:04d}.dcm").unlink() for i in numbers]


UNEVEN = [
    (removed(3), "IM0002.dcm and IM0004.dcm are 10 mm apart, the others 5 mm; a slice is missing between them"),
    (removed(2, 3), "2 slices are missing between"),
    (moved(5, (0, 0, 26)), "not evenly spaced: IM0000.dcm and IM0001.dcm are 5 mm apart, IM0004.dcm and IM0005.dcm 6"),
    (moved(2, (0, 0, 11.2)), "not evenly spaced"),
    (moved(2, (0, 0, 5)), "IM0001.dcm and IM0002.dcm lie at one place; a slice is there twice"),
    (moved(2, (0.4, 0, 10)), "IM0002.dcm lies 0.4 mm aside of the line of the others"),
    (turned(4, [1, 0, 0, 0, 0, -1]), "IM0004.dcm is turned by 90 degrees against the others, such as IM0000.dcm"),
    (turned(5, [1, 0, 0, 0, -1, 0]), "IM0005.dcm is turned by 180 degrees"),
    (turned(1, [0.9994, 0.0349, 0, -0.0349, 0.9994, 0]), "IM0001.dcm is turned by 2 degrees"),
    (turned(1, [1, 0, 0, 1, 0, 0]), "expected two perpendicular vectors"),
    (lambda f: change(f / "IM0003.dcm", PixelSpacing=[1.2, 1.2]), "IM0003.dcm has the PixelSpacing (1.2, 1.2), the ot"),
    (lambda f: change(f / "IM0003.dcm", FrameOfReferenceUID="1.9"), "IM0003.dcm has the frame of reference"),
    (lambda f: write_slice(f, 3, np.zeros((5, 6), np.int16), (0, 0, 15)), "IM0003.dcm has the rows and columns (5, 6)"),
    (lambda f: change(f / "IM0003.dcm", SeriesInstanceUID="1.9"), "holds 2 DICOM series"),
    (lambda f: change(f / "IM0003.dcm", ImagePositionPatient=None), "IM0003.dcm: states no ImagePositionPatient"),
]


@pytest.mark.parametrize(("damage", "message"), UNEVEN, ids=[m[:40] for _, m in UNEVEN])
def test_a_series_that_is_no_regular_grid_is_refused(tmp_path: Path, damage: Any, message: str) -> None:
    write_series(tmp_path)
    damage(tmp_path)
    assert message in refused(tmp_path)


def test_rounded_positions_are_one_grid(tmp_path: Path) -> None:
    for i in range(40):
        write_slice(
            tmp_path, i, np.full((4, 4), i, np.int16), (0.01 * (i % 2), 0, round(i * 1.25 + 0.004 * (i % 3), 2))
        )
    volume = read_volume(tmp_path)
    assert volume.array[0, :, 0, 0].tolist() == list(range(40))
    np.testing.assert_allclose(volume.spacing_mm, (1.25, 1, 1), rtol=1e-3)


def test_radial_planes_and_frames_in_time_are_refused(tmp_path: Path) -> None:
    for i in range(6):
        c, s = np.cos(np.deg2rad(30 * i)), np.sin(np.deg2rad(30 * i))
        place, turn = (-8 * c, -8 * s, 0), [c, s, 0, 0, 0, -1]
        write_slice(tmp_path / "radial", i, np.zeros((4, 4), np.int16), place, ImageOrientationPatient=turn)
        write_slice(tmp_path / "cine", i, np.zeros((4, 4), np.int16), (0, 0, 42), TriggerTime=30 * i)
        for echo in (1, 2):
            name, place = f"{i}_{echo}", (0, 0, 5 * i)
            array = np.zeros((4, 4), np.int16)
            write_slice(tmp_path / "echoes", 10 * i + echo, array, place, EchoTime=echo, name=name)
    assert "is turned by 30 degrees" in refused(tmp_path / "radial")
    assert "6 frames lie at each place (they differ in TriggerTime)" in refused(tmp_path / "cine")
    assert "2 frames lie at each place (they differ in EchoTime)" in refused(tmp_path / "echoes")


# ---------------------------------------------------------------------------------------------------- multi-frame files


def test_an_enhanced_file_places_and_scales_each_frame(tmp_path: Path) -> None:
    array = np.arange(4 * 6 * 5, dtype=np.uint16).reshape(4, 6, 5)
    write_enhanced(tmp_path / "a" / "E.dcm", array[[2, 0, 3, 1]], [(1, 2, 3 * i) for i in (2, 0, 3, 1)])
    volume = read_volume(tmp_path / "a")
    np.testing.assert_allclose(volume.spacing_mm, (3, 0.5, 0.75))
    for frame, z in enumerate((2, 0, 3, 1)):
        assert at_mm(volume, 1 + 0.75 * 4, 2 + 0.5 * 5, 3 * z) == 2 * array[z, 5, 4] + frame
    assert "rescaled by slice" in kinds(volume)


def test_frames_without_places_stacks_and_gaps_are_refused(tmp_path: Path) -> None:
    array = np.zeros((4, 6, 5), np.uint16)
    write_enhanced(tmp_path / "gap" / "E.dcm", array, [(0, 0, z) for z in (0, 3, 9, 12)])
    assert "E.dcm frame 2 and E.dcm frame 3 are 6 mm apart" in refused(tmp_path / "gap")
    write_enhanced(tmp_path / "twice" / "E.dcm", array, [(0, 0, z) for z in (0, 3, 0, 3)])
    assert "2 frames lie at each place" in refused(tmp_path / "twice")
    (tmp_path / "cine").mkdir()
    dataset(array, 0, NumberOfFrames=4).save_as(tmp_path / "cine" / "a", enforce_file_format=True)
    assert "holds 4 frames without a place each" in refused(tmp_path / "cine")
    (tmp_path / "short").mkdir()
    d = dataset(array, 0, NumberOfFrames=4, PerFrameFunctionalGroupsSequence=[item()])
    d.save_as(tmp_path / "short" / "a", enforce_file_format=True)
    assert "states 4 frames but describes 1" in refused(tmp_path / "short")


@pytest.mark.parametrize("step", [-4, 4])
def test_a_tomogram_is_stacked_the_way_its_spacing_says(tmp_path: Path, step: int) -> None:
    array = (10 * np.arange(8)[:, None, None] + np.zeros((8, 4, 4))).astype(np.uint16)
    place = item(ImagePositionPatient=[0, 0, 40], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    words = {"ImageType": ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"], "NumberOfFrames": 8, "NumberOfSlices": 8}
    sizes = {"PixelSpacing": [4, 4], "SliceThickness": 4, "SpacingBetweenSlices": step}
    d = dataset(array, 0, sop_class=NUCLEAR, DetectorInformationSequence=[place], **words, **sizes)
    d.save_as(tmp_path / "a", enforce_file_format=True)
    volume = read_volume(tmp_path)
    assert [at_mm(volume, 0, 0, 40 + step * i) for i in range(8)] == [10 * i for i in range(8)]
    change(tmp_path / "a", NumberOfSlices=4)
    assert "holds 8 frames of 4 slices" in refused(tmp_path)


# ------------------------------------------------------------------------------------------------ what lies in a folder


def test_what_disks_leave_behind_is_passed_over_and_said(tmp_path: Path) -> None:
    write_series(tmp_path)
    for i, path in enumerate(sorted(tmp_path.glob("*.dcm"))):
        path.rename(tmp_path / f"{90 - i}")
    (tmp_path / "._90").write_bytes(b"\0\5\26\7" * 40)
    for name in ("Thumbs.db", ".DS_Store", "DICOMDIR", "notes.txt", "README"):
        (tmp_path / name).write_text("x")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "scout").mkdir()
    (tmp_path / "scout" / "1").write_bytes((tmp_path / "90").read_bytes())
    volume = read_volume(tmp_path)
    assert volume.array.shape[1] == 6
    assert any("7 that are no DICOM files" in text for kind, text in volume.noticed if kind == "passed over")
    assert holds_dicom(tmp_path)


def test_reports_structures_and_localizers_beside_a_series_are_passed_over(tmp_path: Path) -> None:
    write_series(tmp_path)
    for number, sop_class in ((50, "1.2.840.10008.5.1.4.1.1.481.3"), (51, "1.2.840.10008.5.1.4.1.1.88.11")):
        d = dataset(np.zeros((1, 1), np.int16), number, sop_class=sop_class, SeriesInstanceUID="1.9")
        del d.PixelData, d.Rows
        d.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
    seg = {"sop_class": "1.2.840.10008.5.1.4.1.1.66.4", "SeriesInstanceUID": "1.8"}
    write_slice(tmp_path, 60, np.zeros((6, 5), np.uint8), (0, 0, 0), **seg)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesInstanceUID": "1.7"}
    write_slice(tmp_path, 61, np.zeros((9, 9), np.int16), ImageOrientationPatient=[1, 0, 0, 0, 0, -1], **scout)
    volume = read_volume(tmp_path)
    assert volume.array.shape == (1, 6, 6, 5)
    told = {text for kind, text in volume.noticed if kind == "passed over"}
    assert {"1 of RT Structure Set Storage", "1 of Segmentation Storage", "1 of CT Image Storage"} <= told


def test_several_series_are_listed_with_what_they_are(tmp_path: Path) -> None:
    write_series(tmp_path, SeriesDescription="arterial")
    write_slice(tmp_path, 70, np.zeros((6, 5), np.int16), SeriesInstanceUID="1.9", SeriesDescription="venous")
    assert "holds 2 DICOM series: CT arterial (6 files); CT venous (1 files)" in refused(tmp_path)


def broken_slice(folder: Path, keep: float) -> None:
    content = (folder / "IM0003.dcm").read_bytes()
    (folder / "IM0003.dcm").write_bytes(content[: int(len(content) * keep)])


def dangling(folder: Path) -> None:
    (folder / "IM0003.dcm").unlink()
    (folder / "IM0003.dcm").symlink_to("../.git/annex/objects/x")


INCOMPLETE = [
    (lambda f: (f / "IM0003.dcm").write_bytes(b""), "1 of its slices cannot be read: IM0003.dcm is empty"),
    (dangling, "IM0003.dcm is a link to a file that is not there"),
    (lambda f: (f / "IM0003.dcm").write_bytes(b"<html>404</html>"), "IM0003.dcm is no DICOM file"),
    (
        lambda f: (f / "IM0003.dcm").write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        "IM0003.dcm is no DICOM",
    ),
    (lambda f: (f / "IM0003.dcm").write_bytes(bytes(900)), "IM0003.dcm is no DICOM file"),
    (lambda f: broken_slice(f, 0.98), "IM0003.dcm: its pixels"),
    (lambda f: broken_slice(f, 0.6), "IM0003.dcm"),
    (lambda f: broken_slice(f, 0.4), "IM0003.dcm"),
]


@pytest.mark.parametrize(("damage", "message"), INCOMPLETE)
def test_a_series_that_is_not_all_there_is_refused(tmp_path: Path, damage: Any, message: str) -> None:
    write_series(tmp_path)
    damage(tmp_path)
    assert message in refused(tmp_path)


@pytest.mark.parametrize("keep", [0.99, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.05])
def test_a_slice_cut_anywhere_is_named(tmp_path: Path, keep: float) -> None:
    write_series(tmp_path)
    broken_slice(tmp_path, keep)
    assert "IM0003.dcm" in refused(tmp_path)


def test_a_folder_without_a_series_says_what_it_holds(tmp_path: Path) -> None:
    write_series(tmp_path / "below")
    assert "holds 0 DICOM series (no DICOM file)" in refused(tmp_path)
    assert "folders below are not searched: below" in refused(tmp_path)
    assert not holds_dicom(tmp_path)


def test_warnings_of_pydicom_are_noticed_once(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    write_series(tmp_path)
    for path in tmp_path.iterdir():
        d = pydicom.dcmread(path)
        d.PixelData = d.PixelData + bytes(8)
        d.save_as(path)
    volume = read_volume(tmp_path)
    assert at_mm(volume, 4, 5, 25) == 529
    (told,) = [fact.text for fact in volume.noticed if fact.kind == "warning"]
    assert "(6 times)" in told
    assert not recwarn
