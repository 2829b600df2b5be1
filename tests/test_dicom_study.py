"""Studies as archives export them: every series is a case with a key of its own, what is no volume is named."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import dataset, write_series, write_slice
from inflate3d.contracts import DatasetCard
from inflate3d.data.raw.dicom_study import series_below
from inflate3d.data.raw.readers import read_volume
from inflate3d.errors import InputError
from inflate3d.evaluation.prediction.inputs import find_cases, media_in, read_case
from toy_batches import toy_card

CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
REPORT = "1.2.840.10008.5.1.4.1.1.88.11"
SCOUT = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesInstanceUID": "1.2.7"}


def write_report(folder: Path, uid: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    d = dataset(np.zeros((1, 1), np.int16), 90, sop_class=REPORT, SeriesInstanceUID=uid)
    del d.PixelData, d.Rows
    d.save_as(folder / "report", enforce_file_format=True)


def write_export(root: Path) -> Path:
    """Two patients: one with two series, a scout and a report in one folder; one with a folder a series."""
    study = root / "P1/S1"
    for uid, count in (("1.2.1", 4), ("1.2.2", 6)):
        for i in range(count):
            array = np.full((6, 5), 10 * count + i, np.int16)
            write_slice(study, i, array, (0, 0, 5 * i), name=f"{uid}_{i}", SeriesInstanceUID=uid)
    write_slice(study, 50, np.zeros((9, 9), np.int16), name="scout", **SCOUT)
    write_report(study, "1.2.8")
    write_series(root / "P2/S1/T1", SeriesInstanceUID="1.3.1")
    write_report(root / "P2/S1/SR", "1.3.2")
    flat: dict[str, Any] = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient"))
    write_slice(root / "P2/S1/SC", 0, np.zeros((6, 5), np.uint8), sop_class=CAPTURE, SeriesInstanceUID="1.3.3", **flat)
    (root / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    return root


@pytest.fixture
def card() -> DatasetCard:
    return toy_card()


def test_every_series_of_an_export_is_a_case_and_the_rest_is_named(
    tmp_path: Path, card: DatasetCard, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_export(tmp_path / "export")
    assert media_in(root) == {"volume"}
    with caplog.at_level(logging.WARNING, "inflate3d"):
        cases = {case.key: case for case in find_cases(root, card)}
    assert list(cases) == ["P1-S1-1_2_1", "P1-S1-1_2_2", "P2-S1-T1"]
    for key, depth, darkest in (("P1-S1-1_2_1", 4, 40), ("P1-S1-1_2_2", 6, 60), ("P2-S1-T1", 6, 0)):
        members, _ = read_case(cases[key], card)
        assert members["image"].shape == (1, depth, 6, 5)
        assert members["image"].min() == darkest
    (said,) = caplog.messages
    assert "passed over: P1/S1: 1 localizers; P1/S1: 1 Basic Text SR Storage; " in said
    assert "P2/S1/SC: 1 captures of a screen, without a place; P2/S1/SR: 1 Basic Text SR Storage" in said


def test_keys_do_not_depend_on_what_lies_beside(tmp_path: Path, card: DatasetCard) -> None:
    root = write_export(tmp_path / "export")
    before = {case.key for case in find_cases(root, card)}
    write_series(root / "P3/S1/T1", SeriesInstanceUID="1.4.1")
    assert {case.key for case in find_cases(root, card)} == before | {"P3-S1-T1"}
    assert [case.key for case in find_cases(root / "P2/S1/T1", card)] == ["T1"]
    assert [case.key for case in find_cases(root / "P2", card)] == ["S1-T1"]


def test_a_scout_alone_is_read_and_reports_alone_are_not(tmp_path: Path, card: DatasetCard) -> None:
    write_slice(tmp_path / "scout", 0, np.zeros((9, 9), np.int16), **SCOUT)
    assert series_below(tmp_path) == [tmp_path / "scout"]
    write_report(tmp_path / "reports", "1.9")
    with pytest.raises(InputError, match="holds DICOM files, but none of an image that can be a volume"):
        find_cases(tmp_path / "reports", card)


def test_a_series_in_two_folders_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_series(tmp_path / "b")
    with pytest.raises(InputError, match=r"of the DICOM series 1\.2\.3\.4 lie in .*/a and in .*/b; put them into one"):
        series_below(tmp_path)


def test_nothing_that_is_broken_vanishes(tmp_path: Path, card: DatasetCard) -> None:
    root = write_export(tmp_path)
    (root / "P4").mkdir()
    (root / "P4/IM0.dcm").symlink_to("../.git/annex/objects/x")
    (root / "P1/S1/cut").write_bytes((root / "P1/S1/1.2.1_0").read_bytes()[:300])
    cases = {case.key: case for case in find_cases(root, card)}
    with pytest.raises(InputError, match=r"IM0\.dcm is a link to a file that is not there"):
        read_case(cases["P4"], card)
    for key in ("P1-S1-1_2_1", "P1-S1-1_2_2"):  # whose slice it is, nobody can tell
        with pytest.raises(InputError, match="cut"):
            read_case(cases[key], card)


def test_a_series_that_the_folder_does_not_hold_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path)
    assert read_volume(tmp_path / "1.2.3.4").array.shape == (1, 6, 6, 5)
    with pytest.raises(InputError, match="holds 0 DICOM series"):
        read_volume(tmp_path / "1.2.3.5")
    with pytest.raises(InputError, match="no such file"):
        read_volume(tmp_path / "case")
