"""DICOM segmentations (PS3.3 A.51): a label map beside the series that it was predicted from, written by highdicom."""

# X Y Z voxels of a series as `load_dicom` gives them: columns, rows, slices.

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from inflate3d.contracts import AbstractTarget
from inflate3d.data.raw.dicom_series import is_series, slices_of
from inflate3d.errors import InputError
from inflate3d.evaluation.prediction.dicom_codes import meaning_of
from inflate3d.files import write_whole

_LONGEST = 64
"""Of a name in DICOM (LO, PS3.5 6.2)."""


def require_highdicom() -> None:
    """Raise InputError where the package is missing."""
    if find_spec("highdicom") is None:
        raise InputError("--dicom-seg needs highdicom: pip install 'inflate3d[dicom-seg]'")


def check_dicom_inputs(files: Sequence[Path]) -> None:
    """Raise InputError where highdicom is missing, or an input is no DICOM series."""
    require_highdicom()
    if others := [file for file in files if not is_series(file)]:
        raise InputError(f"--dicom-seg: {others[0]} is no DICOM series, so nothing can lie over it; leave it out")


def write_dicom_seg(
    path: Path, labels_XYZ: np.ndarray, series: Path, target: AbstractTarget, *, algorithm: str
) -> None:
    """Write one binary segment for each label but 0 that the target's answers may be written as, named as the target.

    algorithm: what predicted; a name longer than 64 characters keeps its end, and stands whole among the parameters.
    The same labels of the same series by the same algorithm have the same UIDs. InputError where the series lacks what
    a segmentation must refer to.
    """
    sources, frames_ZYX = _on_source_frames(series, labels_XYZ.transpose(2, 1, 0))
    values = [value for value in sorted(set(target.written.values())) if value]
    numbers = np.zeros(256, np.uint8)
    numbers[values] = np.arange(1, len(values) + 1)
    names = [target.names[value] for value in values]
    numbers_ZYX = np.ascontiguousarray(numbers[frames_ZYX])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pydicom, about what the scanner wrote
            found = _segmentation(sources, numbers_ZYX, names, algorithm)
            content = io.BytesIO()
            found.save_as(content, enforce_file_format=True)
    except (AttributeError, KeyError, TypeError, ValueError) as fault:
        raise InputError(f"--dicom-seg: {series} cannot be referred to: {' '.join(str(fault).split())}") from fault
    write_whole(path, content.getvalue())


def _on_source_frames(series: Path, labels_ZYX: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """Return the headers that hold the slices, and the labels in the order of their frames."""
    import pydicom

    slices = slices_of(series)
    files = list(dict.fromkeys(file for file, _ in slices))
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    if len(files) == len(slices):
        return headers, labels_ZYX
    if len(files) > 1:
        raise InputError(f"--dicom-seg: {series} has several files of several frames; export it as single slices")
    order = [index for _, index in slices]
    if len(order) != int(headers[0].NumberOfFrames):
        raise InputError(f"--dicom-seg: {files[0]} holds frames that are no slices; export it as single slices")
    frames_ZYX = np.empty_like(labels_ZYX)
    frames_ZYX[order] = labels_ZYX
    return headers, frames_ZYX


def _segmentation(sources: list[Any], numbers_ZYX: np.ndarray, names: Sequence[str], algorithm: str) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    known_by = hd.AlgorithmIdentificationSequence(
        name=algorithm[-_LONGEST:],
        family=codes.cid7162.ArtificialIntelligence,
        version=version("inflate3d"),
        source="inflate3d",
        parameters={"model": algorithm},
    )
    segments = []
    for number, name in enumerate(names, start=1):
        meaning = meaning_of(name)
        segment = hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=meaning.category,
            segmented_property_type=meaning.kind,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=known_by,
        )
        if meaning.side is not None:
            kind = segment.SegmentedPropertyTypeCodeSequence[0]
            kind.SegmentedPropertyTypeModifierCodeSequence = [hd.sr.CodedConcept.from_code(meaning.side)]
        segments.append(segment)
    about = [str(sources[0].SeriesInstanceUID), algorithm, *names, hashlib.sha256(numbers_ZYX.tobytes()).hexdigest()]
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=numbers_ZYX,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=_uid("series", *about),
        series_number=1000 + int(sources[0].get("SeriesNumber") or 0),
        sop_instance_uid=_uid("instance", *about),
        instance_number=1,
        manufacturer="inflate3d",
        manufacturer_model_name="inflate3d",
        software_versions=version("inflate3d"),
        device_serial_number="0",
        series_description=f"inflate3d: {', '.join(names)}"[:_LONGEST],
    )


def _uid(*parts: str) -> str:
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=list(parts)))
