"""How good written label maps are, case by case, on the grid of their files: a CSV of Dice."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from inflate3d.contracts import AbstractTarget
from inflate3d.data.raw.files import stem
from inflate3d.data.raw.pairs import check_pair, on_grid_of
from inflate3d.data.raw.readers import SUFFIXES, Volume, read_volume
from inflate3d.errors import InputError, close_names
from inflate3d.evaluation.prediction.score_table import SCORES as SCORES
from inflate3d.files import write_whole
from inflate3d.nn.metrics import class_name, volume_dice

_FIRST_CHANNEL = "_0000"


class CaseScores:
    """Dice of each case against a label file of the same name, at the files' own spacing, for what was annotated."""

    def __init__(
        self, labels: Path, keys: Sequence[str], target: AbstractTarget, table: Path, *, label_names: Sequence[str] = ()
    ) -> None:
        """labels: a file, for one case, or a folder of files named as the cases are; a _0000 at the end may be missing.

        label_names: the class of each label in these files; default: all of the target's, in order. InputError names
        the cases without a file.
        """
        self.target, self.table = target, table
        self.label_names = tuple(label_names) or target.names
        self.kept = [i for i in range(1, len(target.names)) if i not in target.unannotated]
        self.files = _label_files(labels, keys)
        self.rows: dict[str, list[float]] = {}

    def add(self, key: str, labels_XYZ: np.ndarray, stored: Volume) -> None:
        """Score one case, whose image lies as `stored`. InputError if its labels have another shape, place or class."""
        where = f"--labels: {self.files[key]}"
        truth = on_grid_of(read_volume(self.files[key], orientation=None, is_mask=True), stored, where=where)
        check_pair(stored, truth, self.label_names, where=where)
        guess, true = (
            torch.from_numpy(np.ascontiguousarray(a).astype(np.int64)) for a in (labels_XYZ.T, truth.array[0])
        )
        names = self.target.names
        true = torch.tensor([names.index(name) for name in self.label_names])[true]
        dice, spoke = volume_dice(guess, true, len(names))
        self.rows[key] = torch.where(spoke, dice, float("nan"))[self.kept].tolist()

    def _columns(self) -> list[str]:
        return [class_name(self.target.names[i]) for i in self.kept]

    def mean(self) -> list[float]:
        """Return the Dice of each annotated class, averaged over the cases that speak of it, as validation does."""
        with np.errstate(invalid="ignore"):
            table = np.array(list(self.rows.values()))
            return (np.nansum(table, axis=0) / np.isfinite(table).sum(axis=0)).tolist()

    def close(self) -> None:
        """Write the file whole: key, dice, and a column a class; empty where neither truth nor prediction holds it."""
        if not self.rows:
            return
        table = [["key", "dice", *(f"dice_{name}" for name in self._columns())]]
        for key, row in [*self.rows.items(), ("mean", self.mean())]:
            spoken = [value for value in row if np.isfinite(value)]
            cells = [float(np.mean(spoken)) if spoken else float("nan"), *row]
            table.append([key, *(f"{value:.6f}" if np.isfinite(value) else "" for value in cells)])
        write_csv(self.table, table)

    def __str__(self) -> str:
        """The averages, in a line; "" where no case was scored."""
        if not self.rows:
            return ""
        named = [f"{name} {value:.4f}" for name, value in zip(self._columns(), self.mean(), strict=True)]
        return (
            f"Dice of {len(self.rows)} cases: {np.nanmean(self.mean()):.4f} ({', '.join(named)}), each in {self.table}"
        )


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
