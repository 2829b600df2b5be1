"""The grid of a DICOM series, checked from every frame's own place."""

# Positions and vectors in LPS millimetres; x along a row of pixels, y along a column, z from frame to frame.

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inflate3d.data.raw.dicom_frames import Frame
from inflate3d.data.raw.grid import TOLERANCE
from inflate3d.data.raw.noticed import Noticed
from inflate3d.data.raw.nrrd_mha import LPS_TO_RAS
from inflate3d.errors import InputError

_ONE_PLACE_MM = 1e-3


def grid_of(frames: Sequence[Frame], folder: Path) -> tuple[list[Frame], np.ndarray, tuple[Noticed, ...]]:
    """Return the frames in the order of their place, the affine from (x, y, z) indices to RAS+ mm, and what to say.

    Every frame's corners lie within TOLERANCE voxels of the affine's. Frames that shift evenly (a tilted gantry) are
    one sheared grid, which the affine holds exactly. InputError names the frame that does not fit, and by how much.
    """
    frames = list(frames)
    _check_alike(frames, folder)
    _check_turned(frames, folder)
    normal = np.cross(frames[0].row, frames[0].column)
    frames.sort(key=lambda frame: float(frame.position_mm @ normal))
    first, count = frames[0], len(frames)
    if count == 1:
        if first.thickness_mm is None:
            raise InputError(f"{folder}: one slice without SliceThickness (0018,0050), so its voxels have no depth")
        step = normal * first.thickness_mm
    else:
        _check_places(frames, normal, folder)
        step = (frames[-1].position_mm - first.position_mm) / (count - 1)
        _check_even(frames, step, normal, folder)
    affine = np.eye(4)
    affine[:3, 0] = first.row * first.spacing_mm[1]
    affine[:3, 1] = first.column * first.spacing_mm[0]
    affine[:3, 2] = step
    affine[:3, 3] = first.position_mm
    return frames, LPS_TO_RAS @ affine, _tilt(step, normal, count, first)


def _check_alike(frames: Sequence[Frame], folder: Path) -> None:
    """Refuse frames of another size, another pixel spacing, another frame of reference or another unit."""
    for name, words in (
        ("shape", "rows and columns"),
        ("place", "frame of reference (0020,0052)"),
        ("unit", "unit of values"),
        ("spacing_mm", "PixelSpacing"),
    ):
        values = [getattr(frame, name) for frame in frames]
        usual = Counter(values).most_common(1)[0][0]
        for frame, value in zip(frames, values, strict=True):
            if value != usual and not (name == "spacing_mm" and np.allclose(value, usual, rtol=1e-5)):
                raise InputError(
                    f"{folder}: {frame} has the {words} {value}, the others {usual}; "
                    "they are no one volume. Leave the slice out, or split the series"
                )


def _check_turned(frames: Sequence[Frame], folder: Path) -> None:
    """Refuse a frame whose far corner is moved by its turn against the usual orientation."""
    rounded = [(*np.round(f.row, 3), *np.round(f.column, 3)) for f in frames]
    usual = frames[rounded.index(Counter(rounded).most_common(1)[0][0])]
    rows, columns = usual.shape
    for frame in frames:
        along = (columns - 1) * usual.spacing_mm[1] * (frame.row - usual.row)
        down = (rows - 1) * usual.spacing_mm[0] * (frame.column - usual.column)
        if max(np.linalg.norm(v) for v in (along, down, along + down)) > TOLERANCE * min(usual.spacing_mm):
            angle = max(_degrees(frame.row, usual.row), _degrees(frame.column, usual.column))
            raise InputError(
                f"{folder}: {frame} is turned by {angle:.3g} degrees against the others, such as {usual}; "
                "slices of one volume are parallel. Leave it out, or split the series"
            )


def _check_places(frames: Sequence[Frame], normal: np.ndarray, folder: Path) -> None:
    """Refuse frames at one place: in time, of several echoes, or the same slice twice."""
    heights = np.array([frame.position_mm @ normal for frame in frames])
    twice = np.flatnonzero(np.diff(heights) < _ONE_PLACE_MM)
    if not len(twice):
        return
    places = np.cumsum(np.r_[True, np.diff(heights) >= _ONE_PLACE_MM])
    counts = set(Counter(places.tolist()).values())
    one, other = frames[twice[0]], frames[twice[0] + 1]
    if len(counts) == 1 and len(frames) > 2:
        differ = [n for n in one.traits if one.traits[n] != other.traits.get(n)]
        by = f" (they differ in {differ[0]})" if differ else ""
        raise InputError(
            f"{folder}: {counts.pop()} frames lie at each place{by}: times, echoes or the like, not one volume. "
            "Give a folder for each of them"
        )
    raise InputError(
        f"{folder}: {one} and {other} lie at one place; a slice is there twice, or in several versions. Leave one out"
    )


def _check_even(frames: Sequence[Frame], step: np.ndarray, normal: np.ndarray, folder: Path) -> None:
    """Refuse frames off the straight even line from the first to the last: by TOLERANCE of a step, or of a pixel."""
    places = np.array([frame.position_mm for frame in frames])
    off = places - (places[0] + np.arange(len(frames))[:, None] * step)
    along = off @ normal
    aside = np.linalg.norm(off - along[:, None] * normal, axis=1)
    if np.abs(along).max() > TOLERANCE * float(step @ normal):
        raise InputError(f"{folder}: {_uneven(frames, np.diff(places @ normal))}")
    if aside.max() > TOLERANCE * min(frames[0].spacing_mm):
        worst = int(aside.argmax())
        raise InputError(
            f"{folder}: {frames[worst]} lies {aside[worst]:.3g} mm aside of the line of the others; "
            "its position is wrong, or it is of another series"
        )


def _uneven(frames: Sequence[Frame], steps: np.ndarray) -> str:
    typical = float(np.median(steps))
    widest = int(steps.argmax())
    missing = steps[widest] / typical - 1
    if missing > 0.5 and abs(missing - round(missing)) < 0.2:
        several = f"{round(missing)} slices are" if missing > 1.5 else "a slice is"
        return (
            f"{frames[widest]} and {frames[widest + 1]} are {steps[widest]:.4g} mm apart, the others {typical:.4g} mm; "
            f"{several} missing between them. Complete the series"
        )
    at = int(np.argmax(np.abs(steps - steps[0]) > TOLERANCE * typical))
    return (
        f"slices are not evenly spaced: {frames[0]} and {frames[1]} are {steps[0]:.4g} mm apart, {frames[at]} and "
        f"{frames[at + 1]} {steps[at]:.4g} mm. Resample the series to even slices, or split it"
    )


def _tilt(step: np.ndarray, normal: np.ndarray, count: int, first: Frame) -> tuple[Noticed, ...]:
    aside = np.linalg.norm(step - (step @ normal) * normal) * (count - 1)
    if aside <= TOLERANCE * min(first.spacing_mm):
        return ()
    text = f"slices shift by {_degrees(step, normal):.3g} degrees, {aside:.3g} mm in all; the affine holds the shear"
    return (Noticed("tilted", text),)


def _degrees(one: np.ndarray, other: np.ndarray) -> float:
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
