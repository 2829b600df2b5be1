"""The reading sessions of LIDC-IDRI: outlines of nodules in XML, and which outlines are one nodule."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from inflate3d.errors import InputError


@dataclass(frozen=True)
class Outline:
    """A nodule of 3 mm or more as one radiologist saw it. points: (N, 3), column and row in pixels, and z in mm.

    reader: 0 to 3, the session. malignancy: 1 (highly unlikely) to 5 (highly suspicious).
    """

    reader: int
    malignancy: int
    points: np.ndarray


@dataclass(frozen=True)
class PlacedOutline:
    """An outline in the scan. middle_mm: (x, y, z), LPS, the middle of its box. diameter_mm: the box's longest edge."""

    reader: int
    malignancy: int
    middle_mm: np.ndarray
    diameter_mm: float


def read_sessions(file: Path) -> list[Outline]:
    """Return the outlines of nodules that have a malignancy; none of a file about a chest radiograph.

    Format: LidcReadMessage of http://www.nih.gov, with up to four readingSession. InputError for a file that is no XML
    or holds other values.
    """
    try:
        root = ElementTree.parse(file).getroot()
        if _bare(root.tag) != "LidcReadMessage":
            return []
        sessions = [element for element in root if _bare(element.tag) == "readingSession"]
        return [
            outline
            for reader, session in enumerate(sessions)
            for element in session
            if _bare(element.tag) == "unblindedReadNodule" and (outline := _outline(element, reader)) is not None
        ]
    except (ElementTree.ParseError, ValueError, TypeError, OSError) as fault:
        raise InputError(f"{file}: is no whole file of reading sessions ({fault}); fetch it again") from fault


def in_millimetres(outlines: Sequence[Outline], series: Path) -> list[PlacedOutline]:
    """Place outlines by the header of a slice of their series.

    InputError for no slice, and for one that is not axial.
    """
    import pydicom

    if not (slices := sorted(series.glob("*.dcm"))):
        raise InputError(f"{series}: holds reading sessions and no .dcm; complete the download")
    try:
        header = pydicom.dcmread(slices[0], stop_before_pixels=True)
        position, turn, spacing = (
            np.array(header[name].value, float)
            for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        )
    except (pydicom.errors.InvalidDicomError, KeyError, TypeError, ValueError) as fault:
        raise InputError(f"{slices[0]}: states no place of its pixels ({fault}); fetch it again") from fault
    if not np.allclose(turn, [1, 0, 0, 0, 1, 0], atol=1e-3):
        raise InputError(f"{slices[0]}: orientation {turn.tolist()}; outlines are read on axial slices alone")
    scale, start = np.array([spacing[1], spacing[0], 1.0]), np.array([position[0], position[1], 0.0])
    placed = []
    for outline in outlines:
        points = outline.points * scale + start
        low, high = points.min(0), points.max(0)
        placed.append(PlacedOutline(outline.reader, outline.malignancy, (low + high) / 2, float((high - low).max())))
    return placed


def nodules(outlines: Sequence[PlacedOutline]) -> list[list[PlacedOutline]]:
    """Return the outlines of each nodule: those whose middles are within half the larger diameter of one another's.

    In order of z, then y, then x of their first outline.
    """
    together: list[list[PlacedOutline]] = []
    for outline in sorted(outlines, key=lambda o: tuple(o.middle_mm[::-1])):
        near = [group for group in together if any(_is_same(outline, other) for other in group)]
        joined = [o for group in near for o in group] + [outline]
        at = next((i for i, group in enumerate(together) if any(group is n for n in near)), len(together))
        rest = [group for group in together if not any(group is n for n in near)]
        together = [*rest[:at], joined, *rest[at:]]
    return together


def write_example_scan(series: Path, number: int) -> None:
    """Write a scan of 40 x 40 x 16 voxels with a nodule that three readers outlined and one did not."""
    from inflate3d.data.raw.examples import write_dicom_series

    z, y, x = np.indices((16, 40, 40))
    ball = (2.0 * z - 16) ** 2 + (y - 24.0) ** 2 + (x - 16.0) ** 2 <= 25
    scan = np.where(ball, 40 + 100 * (number % 2), -900).astype(np.int16)
    origin = (-100.0, -120.0, -50.0)
    write_dicom_series(
        series, scan, series_uid=f"1.2.4.{number + 1}", patient=f"LIDC-IDRI-{number:04d}", origin_mm=origin
    )
    square = "".join(f"<edgeMap><xCoord>{a}</xCoord><yCoord>{b}</yCoord></edgeMap>" for a, b in _SQUARE)
    rois = "".join(
        f"<roi><imageZposition>{height}</imageZposition><inclusion>TRUE</inclusion>{square}</roi>"
        for height in (-36.0, -34.0, -32.0)
    )
    sessions = "".join(
        f"<readingSession><unblindedReadNodule><characteristics><malignancy>{1 + 3 * (number % 2) + reader % 2}"
        f"</malignancy></characteristics>{rois}</unblindedReadNodule></readingSession>"
        for reader in range(3)
    )
    text = f'<LidcReadMessage xmlns="http://www.nih.gov">{sessions}<readingSession/></LidcReadMessage>'
    (series / "069.xml").write_text(text, encoding="utf-8")


_SQUARE = ((11, 19), (21, 19), (21, 29), (11, 29))


def _outline(nodule: ElementTree.Element, reader: int) -> Outline | None:
    malignancy, points = 0, list[tuple[float, ...]]()
    for element in nodule.iter():
        if _bare(element.tag) == "malignancy":
            malignancy = int(element.text or 0)
        elif _bare(element.tag) == "roi":
            parts = {_bare(part.tag): part for part in element}
            if (parts["inclusion"].text or "").strip().upper() != "TRUE":
                continue
            z = float(parts["imageZposition"].text or "")
            edges = [part for part in element if _bare(part.tag) == "edgeMap"]
            points += [(*(float(coordinate.text or "") for coordinate in edge), z) for edge in edges]
    if malignancy == 0 or len(points) < 3:  # smaller than 3 mm: one point and no ratings
        return None
    if not 1 <= malignancy <= 5:
        raise ValueError(f"malignancy {malignancy}, expected 1 to 5")
    return Outline(reader, malignancy, np.array(points, float))


def _is_same(a: PlacedOutline, b: PlacedOutline) -> bool:
    return bool(np.linalg.norm(a.middle_mm - b.middle_mm) <= max(a.diameter_mm, b.diameter_mm) / 2)


def _bare(tag: str) -> str:
    """Return the name of a tag without its namespace."""
    return re.sub(r"^\{.*\}", "", tag)
