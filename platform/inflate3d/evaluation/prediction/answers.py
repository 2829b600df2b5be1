"""Predictions as files: label maps on the grid of their input, a CSV of class probabilities, or features."""

# K classes, D H W voxels along z y x; X Y Z the axes of a file as it is stored.

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from inflate3d.contracts import DatasetCard
from inflate3d.data.raw.readers import NIFTI, Affine, read_volume
from inflate3d.errors import InputError
from inflate3d.evaluation.prediction.case_scores import SCORES, CaseScores, write_csv
from inflate3d.evaluation.prediction.inputs import InputCase
from inflate3d.sample import Sample

TABLE, VECTORS = "predictions.csv", "features.npz"
# Where voxels lie, as a NIfTI header says it; the rest of an input's header (names, dates, scales) is not copied.
_GEOMETRY = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)


class Answers(Protocol):
    """Where predictions go."""

    def add(self, case: InputCase, sample: Sample, affine: Affine | None, probabilities: Tensor) -> None:
        """Take the answer for one case: probabilities (K,) or (K, D, H, W) of the sample's image."""

    def close(self) -> None:
        """Write what is written at the end."""


def answers_to(
    output: Path,
    card: DatasetCard,
    cases: Sequence[InputCase],
    *,
    features: bool = False,
    labels: Path | None = None,
) -> tuple[Answers, Path]:
    """Return what writes the answers, and the file or folder that they will be in; `labels` score label maps.

    output: a folder; or, for one label map, a .nii or .nii.gz; or, for classes, a .csv; or, for features, a .npz.
    InputError if it cannot be, or would overwrite an input.
    """
    if labels is not None and (features or card.kind != "volume_segmentation"):
        what = "features" if features else card.kind
        raise InputError(
            f"--labels scores label maps; {what} has none. Leave it out, or name a segmentation: --dataset"
        )
    if features:
        file = output if output.suffix.lower() == ".npz" else output / VECTORS
        _make_folder(file.parent)
        return FeatureVectors(file), file
    if card.kind == "volume_segmentation":
        single = len(cases) == 1 and output.name.lower().endswith(NIFTI)
        _make_folder(output.parent if single else output)
        paths = {case.key: output if single else output / f"{case.key}.nii.gz" for case in cases}
        _spare_inputs(paths.values(), cases)
        table = output.with_name(SCORES) if single else output / SCORES
        scores = CaseScores(labels, list(paths), card, table) if labels is not None else None
        return LabelMaps(paths, scores), output
    table = output if output.suffix.lower() == ".csv" else output / TABLE
    _make_folder(table.parent)
    return ClassTable(table, card.classes), table


class LabelMaps:
    """One NIfTI a case, uint8, with the shape and the place of its input; scored where the truth is known."""

    def __init__(self, paths: dict[str, Path], scores: CaseScores | None = None) -> None:
        self.paths, self.scores = paths, scores

    def add(self, case: InputCase, sample: Sample, affine: Affine | None, probabilities: Tensor) -> None:
        """Write the likeliest class of each voxel; where the sample's target is 0, it is padding and is left out."""
        labels_DHW = probabilities.argmax(dim=0).byte().cpu().numpy()[_box(sample.target.numpy())]
        stored = read_volume(case.files[0], orientation=None)
        shape_XYZ = stored.array.shape[:0:-1]
        labels_XYZ = onto_grid(labels_DHW, np.asarray(affine), shape_XYZ, np.asarray(stored.affine))
        write_label_map(self.paths[case.key], labels_XYZ, stored.affine, like=case.files[0])
        if self.scores is not None:
            self.scores.add(case.key, labels_XYZ, stored)

    def close(self) -> None:
        """Write the scores; the maps are written already."""
        if self.scores is not None:
            self.scores.close()


class ClassTable:
    """One CSV: key, predicted class, and a column of probabilities a class."""

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self.path, self.classes = path, classes
        self.rows: list[list[str]] = []

    def add(self, case: InputCase, sample: Sample, affine: Affine | None, probabilities: Tensor) -> None:
        """Note the row of one case."""
        values = probabilities.tolist()
        best = max(range(len(values)), key=values.__getitem__)
        self.rows.append([case.key, self.classes[best], *(f"{value:.6f}" for value in values)])

    def close(self) -> None:
        """Write the file whole and give it its name; nothing where no case could be read."""
        if not self.rows:
            return
        header = ["key", "predicted", *(f"probability_{name}" for name in self.classes)]
        write_csv(self.path, [header, *self.rows])


class FeatureVectors:
    """One .npz: `keys` (N,) and pooled `features` (N, F), float32."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, np.ndarray] = {}

    def add(self, case: InputCase, sample: Sample, affine: Affine | None, probabilities: Tensor) -> None:
        """Note the features (F,) of one case."""
        self.found[case.key] = probabilities.cpu().numpy()

    def close(self) -> None:
        """Write the file whole and give it its name; nothing where no case could be read."""
        if not self.found:
            return
        temporary = self.path.with_name(f".{self.path.name}.tmp.npz")
        np.savez(temporary, keys=np.array(list(self.found)), features=np.stack(list(self.found.values())))
        os.replace(temporary, self.path)


def onto_grid(
    labels_DHW: np.ndarray, affine: np.ndarray, shape_XYZ: tuple[int, ...], onto_affine: np.ndarray
) -> np.ndarray:
    """Return the label nearest to each voxel of another grid, (X, Y, Z); exact where both hold the same voxels.

    The affines map (W, H, D) and (X, Y, Z) indices to the same millimetres, along the same axes in any order and
    direction: what turning and resampling on reading leave.
    """
    change = np.linalg.inv(affine) @ onto_affine  # (x, y, z) -> (w, h, d)
    from_axis = [int(np.abs(row[:3]).argmax()) for row in change[:3]]
    assert sorted(from_axis) == [0, 1, 2], f"grids lie askew: {change}"
    labels_WHD = labels_DHW.transpose(2, 1, 0)
    nearest = []
    for size, axis, row in zip(labels_WHD.shape, from_axis, change, strict=False):
        at = row[axis] * np.arange(shape_XYZ[axis]) + row[3]
        # Rounded first, so that noise of the inverse does not choose between two equally near voxels.
        nearest.append(np.clip(np.floor(np.round(at, 4) + 0.5).astype(np.int64), 0, size - 1))
    picked = labels_WHD[np.ix_(*nearest)]
    return picked.transpose([from_axis.index(axis) for axis in range(3)])


def write_label_map(path: Path, labels_XYZ: np.ndarray, affine: Affine, *, like: Path) -> None:
    """Write labels as NIfTI, whole; where `like` is one, its header says to the bit where the voxels lie."""
    import nibabel as nib

    image: Any = nib.Nifti1Image(np.ascontiguousarray(labels_XYZ), np.asarray(affine))
    image.header.set_xyzt_units("mm")
    if like.name.lower().endswith(NIFTI):
        source: Any = nib.load(like)
        header = type(source.header)()
        header.set_data_dtype(np.uint8)
        for name in _GEOMETRY:
            header[name] = source.header[name]
        header["pixdim"][:4] = source.header["pixdim"][:4]
        image = type(source)(np.ascontiguousarray(labels_XYZ), None, header)
    temporary = path.with_name(f".tmp-{path.name}")
    nib.save(image, temporary)
    os.replace(temporary, path)


def _box(inside_DHW: np.ndarray) -> tuple[slice, ...]:
    """Return the box that holds all that is not 0."""
    box = []
    for axis in range(3):
        others = tuple(i for i in range(3) if i != axis)
        used = np.flatnonzero(inside_DHW.any(axis=others))
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise InputError(f"--output: {folder} cannot be a folder: {fault.strerror}; give another path") from fault


def _spare_inputs(paths: Any, cases: Sequence[InputCase]) -> None:
    inputs = {file.resolve() for case in cases for file in case.files}
    if taken := [path for path in paths if path.resolve() in inputs]:
        raise InputError(f"--output: {taken[0]} is an input and would be overwritten; give another folder")
