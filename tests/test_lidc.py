"""LIDC-IDRI: nodules by their readers, cut out of scans at the place that the outlines say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from inflate3d.data.raw.lidc_readings import PlacedOutline, nodules, read_sessions
from inflate3d.datasets.lidc_idri import LIDCIDRI
from inflate3d.errors import InputError


def test_a_nodule_lies_in_the_middle_of_its_cube_with_its_class(tmp_path: Path) -> None:
    made = LIDCIDRI(**LIDCIDRI.write_example(tmp_path))
    cases = made.cases()
    assert [case.key for case in cases] == [f"LIDC-IDRI-{i:04d}_0" for i in (1, 2, 3, 4)]
    labels = [made.read(case).targets["label"] for case in cases]
    assert labels == [0, 1, 0, 1]
    sample = made.read(cases[1])
    z, y, x = np.argwhere(sample.image[0] > 0).mean(0)  # type: ignore[index]
    np.testing.assert_allclose((z, y, x), (6, 6, 6), atol=0.6)  # 12 voxels: 6 is the one nearest to the middle
    assert sample.spacing_mm == (1.0, 1.0, 1.0)
    splits = {case.group: case.split for case in cases}
    assert sorted(splits.values()) == ["train", "train", "val", "val"]


def test_indeterminate_nodules_and_those_of_few_readers_are_left_out(tmp_path: Path) -> None:
    LIDCIDRI.write_example(tmp_path)
    file = tmp_path / "LIDC-IDRI-0001/study/series/069.xml"
    text = file.read_text()
    file.write_text(text.replace("<malignancy>1<", "<malignancy>3<").replace("<malignancy>2<", "<malignancy>3<"))
    other = tmp_path / "LIDC-IDRI-0002/study/series/069.xml"
    start = other.read_text().index("<readingSession>")
    end = other.read_text().index("</readingSession>") + len("</readingSession>")
    other.write_text(other.read_text()[:start] + other.read_text()[end:])
    assert [c.key for c in LIDCIDRI(tmp_path, val_fraction=0).cases()] == ["LIDC-IDRI-0003_0", "LIDC-IDRI-0004_0"]
    two = LIDCIDRI(tmp_path, val_fraction=0, min_readers=2).cases()
    assert [c.key[:14] for c in two] == ["LIDC-IDRI-0002", "LIDC-IDRI-0003", "LIDC-IDRI-0004"]


def test_outlines_near_each_other_are_one_nodule() -> None:
    def at(x: float, diameter: float = 10) -> PlacedOutline:
        return PlacedOutline(0, 4, np.array([x, 0.0, 0.0]), diameter)

    found = [[float(o.middle_mm[0]) for o in group] for group in nodules([at(30), at(0), at(4), at(8), at(36, 4)])]
    assert found == [[0, 4, 8], [30], [36]]
    assert len(nodules([at(0), at(4.9)])) == 1
    assert len(nodules([at(0), at(5.1)])) == 2


def test_exclusions_small_nodules_and_radiographs_are_passed_over(tmp_path: Path) -> None:
    LIDCIDRI.write_example(tmp_path)
    file = tmp_path / "LIDC-IDRI-0001/study/series/069.xml"
    text = file.read_text()
    assert len(read_sessions(file)) == 3
    assert read_sessions(file)[0].points.shape == (12, 3)
    file.write_text(text.replace("TRUE", "FALSE", 1))
    assert read_sessions(file)[0].points.shape == (8, 3)
    file.write_text(text.replace("<characteristics><malignancy>1</malignancy></characteristics>", ""))
    assert [o.reader for o in read_sessions(file)] == [1]
    file.write_text(text.replace("LidcReadMessage", "IdriReadMessage"))
    assert read_sessions(file) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "is no whole file of reading sessions"),
        (lambda text: text.replace("<malignancy>1<", "<malignancy>9<"), "malignancy 9, expected 1 to 5"),
        (lambda text: text.replace("-36.0", "high"), "could not convert string to float"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, change, message: str) -> None:
    LIDCIDRI.write_example(tmp_path)
    file = tmp_path / "LIDC-IDRI-0001/study/series/069.xml"
    file.write_text(change(file.read_text()))
    with pytest.raises(InputError, match=f"069.xml.*{message}"):
        LIDCIDRI(tmp_path).cases()


def test_a_folder_without_readings_and_readings_without_slices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no LIDC-IDRI-\*"):
        LIDCIDRI(tmp_path).cases()
    LIDCIDRI.write_example(tmp_path)
    for slice_ in (tmp_path / "LIDC-IDRI-0001/study/series").glob("*.dcm"):
        slice_.unlink()
    with pytest.raises(InputError, match=r"holds reading sessions and no \.dcm"):
        LIDCIDRI(tmp_path).cases()
