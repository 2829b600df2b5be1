"""How good written label maps are, case by case, on the grid of their files: overlap, and distance in mm, as a CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from inflate3d.contracts import AbstractTarget
from inflate3d.data.raw.files import stem
from inflate3d.data.raw.pairs import check_pair, on_grid_of
from inflate3d.data.raw.readers import SUFFIXES, Volume, read_volume
from inflate3d.errors import InputError, close_names
from inflate3d.evaluation.prediction.score_table import SCORES as SCORES
from inflate3d.evaluation.prediction.surface import surface_distances_mm
from inflate3d.files import write_whole
from inflate3d.nn.metrics import class_name
from inflate3d.sample import Spacing

MEASURES = ("dice", "hd95_mm", "surface_mm", "sensitivity", "precision")
_FIRST_CHANNEL = "_0000"


class CaseScores:
    """Scores of each case against a label file of the same name, at the files' own spacing, for what was annotated.

    Of each class or region: Dice, HD95 and average surface distance in mm (surface.py), sensitivity TP / (TP + FN) and
    precision TP / (TP + FP). What says nothing is NaN, an empty cell, and in no mean: a class that neither map holds,
    sensitivity where the truth does not hold it, precision where the prediction does not. A class that only one of
    both holds has Dice 0 and distances of infinity ("inf"), which means leave out and the last line counts.
    """

    def __init__(
        self, labels: Path, keys: Sequence[str], target: AbstractTarget, table: Path, *, label_names: Sequence[str] = ()
    ) -> None:
        """labels: a file, for one case, or a folder of files named as the cases are; a _0000 at the end may be missing.

        label_names: the class of each label in these files; default: all of the target's, in order. InputError names
        the cases without a file.
        """
        self.target, self.table = target, table
        self.label_names = tuple(label_names) or target.names
        self.files = _label_files(labels, keys)
        self.rows: dict[str, dict[str, list[float]]] = {}

    def add(self, key: str, labels_XYZ: np.ndarray, stored: Volume) -> None:
        """Score one case, whose image lies as `stored`. InputError if its labels have another shape, place or class."""
        where = f"--labels: {self.files[key]}"
        truth = on_grid_of(read_volume(self.files[key], orientation=None, is_mask=True), stored, where=where)
        check_pair(stored, truth, self.label_names, where=where)
        names = self.target.names
        true_DHW = np.array([names.index(name) for name in self.label_names], np.uint8)[truth.array[0]]
        pairs = _masks_of_each(labels_XYZ.T, true_DHW, self.target)
        of_each = [_measured(guess, true, stored.spacing_mm) for guess, true in pairs]
        self.rows[key] = dict(zip(MEASURES, map(list, zip(*of_each, strict=True)), strict=True))

    def _columns(self) -> list[str]:
        return [class_name(name) for name in self.target.scored]

    def means(self, measure: str) -> list[float]:
        """Return a measure of each class or region, averaged over the cases that speak of it, as validation does."""
        return [_mean(column) for column in zip(*(row[measure] for row in self.rows.values()), strict=True)]

    def close(self) -> None:
        """Write the file whole: key, and for each measure its mean over the classes and a column a class."""
        if not self.rows:
            return
        table = [["key", *(column for m in MEASURES for column in (m, *(f"{m}_{name}" for name in self._columns())))]]
        for key, row in [*self.rows.items(), ("mean", {m: self.means(m) for m in MEASURES})]:
            cells = [value for m in MEASURES for value in (_mean(row[m]), *row[m])]
            table.append([key, *("" if math.isnan(value) else f"{value:.6f}" for value in cells)])
        write_csv(self.table, table)

    def __str__(self) -> str:
        """The averages, in two lines; "" where no case was scored."""
        if not self.rows:
            return ""
        dice = self.means("dice")
        named = ", ".join(f"{name} {value:.4f}" for name, value in zip(self._columns(), dice, strict=True))
        hd95, surface, sensitivity, precision = (_mean(self.means(m)) for m in MEASURES[1:])
        distances = [value for row in self.rows.values() for value in row["hd95_mm"] if not math.isnan(value)]
        alone = sum(map(math.isinf, distances))
        left_out = f"; {alone} of {len(distances)} distances are inf, a class missed or made up, and in no mean"
        return (
            f"Dice of {len(self.rows)} cases: {_mean(dice):.4f} ({named}), each in {self.table}\n"
            f"HD95 {hd95:.2f} mm, average surface distance {surface:.2f} mm, sensitivity {sensitivity:.4f}, "
            f"precision {precision:.4f}{left_out if alone else ''}"
        )


def _masks_of_each(
    guess_DHW: np.ndarray, true_DHW: np.ndarray, target: AbstractTarget
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield both masks of each class or region, cut to the box that holds both; voxels that the truth leaves out are
    in none.
    """
    from scipy import ndimage

    boxes = [ndimage.find_objects(array) for array in (guess_DHW, true_DHW)]
    for labels in target.scored.values():
        pairs = [(of, label) for of in boxes for label in labels]
        held = [of[label - 1] for of, label in pairs if label <= len(of) and of[label - 1] is not None]
        box = tuple(slice(min(p.start for p in along), max(p.stop for p in along)) for along in zip(*held, strict=True))
        box = box or (slice(0),) * 3
        known = ~np.isin(true_DHW[box], target.left_out)
        yield np.isin(guess_DHW[box], labels) & known, np.isin(true_DHW[box], labels) & known


def _measured(guess_DHW: np.ndarray, true_DHW: np.ndarray, spacing_mm: Spacing) -> tuple[float, ...]:
    """Return MEASURES of one class."""
    both, guessed, true = (int(mask.sum()) for mask in (guess_DHW & true_DHW, guess_DHW, true_DHW))
    dice = _share(2 * both, guessed + true)
    return (
        dice,
        *surface_distances_mm(guess_DHW, true_DHW, spacing_mm),
        _share(both, true),
        _share(both, guessed),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _mean(values: Iterable[float]) -> float:
    """Return the mean of the finite ones; NaN if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def write_csv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write rows as a CSV, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_whole(path, text.getvalue().encode())


def _label_files(labels: Path, keys: Sequence[str]) -> Mapping[str, Path]:
    if not labels.exists():
        raise InputError(f"--labels: no file or folder {str(labels)!r}")
    if labels.is_file():
        if len(keys) > 1:
            raise InputError(f"--labels: {labels} is one file, but --input holds {len(keys)} cases; give a folder")
        return {keys[0]: labels}
    suffixes = sorted(SUFFIXES, key=len, reverse=True)
    held = {stem(f, suffixes): f for f in sorted(labels.iterdir()) if f.name.lower().endswith(tuple(suffixes))}
    found = {key: held.get(key) or held.get(key.removesuffix(_FIRST_CHANNEL)) for key in keys}
    if missing := [key for key, file in found.items() if file is None]:
        close = close_names(missing[0], held)
        hint = f"; close names there: {', '.join(map(repr, close))}" if close else ""
        raise InputError(
            f"--labels: {labels} has no file for {len(missing)} of {len(keys)} cases: {missing[0]!r}{hint}"
        )
    return {key: file for key, file in found.items() if file is not None}
