"""Predictions as files, by their type: label maps on the grid of their input, a CSV, or features."""

# K classes, D H W voxels along z y x; X Y Z the axes of a file as it is stored.

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from inflate3d.contracts import AbstractTarget, Features, Masks, Prediction, Probabilities, Values
from inflate3d.data.raw.files import stem
from inflate3d.data.raw.nifti import NIFTI, nifti_header
from inflate3d.data.raw.readers import Affine, read_volume
from inflate3d.errors import InputError, unknown_name
from inflate3d.evaluation.prediction.case_scores import SCORES, CaseScores, write_csv
from inflate3d.evaluation.prediction.components import largest_components
from inflate3d.evaluation.prediction.dicom_seg import write_dicom_seg
from inflate3d.evaluation.prediction.inputs import InputCase
from inflate3d.evaluation.prediction.table_scores import SCORES as TABLE_SCORES
from inflate3d.evaluation.prediction.table_scores import TableScores
from inflate3d.files import write_whole

TABLE, VECTORS, PROBABILITIES = "predictions.csv", "features.npz", "probabilities"
# Where voxels lie, as a NIfTI header says it; the rest of an input's header (names, dates, scales) is not copied.
_GEOMETRY = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)


def _number(value: Tensor) -> list[str]:
    return [f"{float(value):.6g}"]


_VALUE = (["value"], _number)


@dataclass(frozen=True)
class Answered:
    """One case. members: what was read of it. tensor: the answer for it, float32; per voxel: for the voxels read."""

    case: InputCase
    members: Mapping[str, Any]
    tensor: Tensor


@dataclass(frozen=True)
class MapOptions:
    """What is done with label maps besides writing them.

    probabilities: each class's go into a file of their own. largest_component: classes of which only the largest
    component stays; (): each but the background; None: none. dicom_seg: a DICOM segmentation beside each map.
    """

    probabilities: bool = False
    largest_component: tuple[str, ...] | None = None
    dicom_seg: bool = False

    def checked(self, target: AbstractTarget | None) -> MapOptions:
        """Return the options. InputError where the answers are no label maps, or for a class that they do not have."""
        if self == PLAIN:
            return self
        if target is None or not target.per_voxel:
            given = {"--probabilities": self.probabilities, "--dicom-seg": self.dicom_seg}
            named = next((option for option, is_given in given.items() if is_given), "--largest-component")
            gives = "features" if target is None else target.describe()
            hint = "; predictions.csv holds probabilities" if self.probabilities and target is not None else ""
            raise InputError(f"{named} is for label maps, but this head gives {gives}{hint}; leave it out")
        if self.largest_component is not None and any(len(labels) > 1 for labels in target.scored.values()):
            raise InputError(
                f"--largest-component is for classes, but this head gives {target.describe()}; leave it out"
            )
        for name in self.largest_component or ():
            if name not in target.answers[1:]:
                raise unknown_name("class", name, target.answers[1:], where="--largest-component")
        return self


PLAIN = MapOptions()


class Answers(Protocol):
    """Where predictions go."""

    place: Path
    """The file or folder that they will be in."""

    def add(self, answered: Answered) -> None:
        """Take the answer for one case."""

    def close(self) -> str:
        """Write what is written at the end; return what is to be told of it, or ""."""


def answers_to(
    output: Path,
    answer: Prediction | Features,
    target: AbstractTarget | None,
    cases: Sequence[InputCase],
    *,
    labels: Path | None = None,
    label_names: Sequence[str] = (),
    options: MapOptions = PLAIN,
    title: str = "",
) -> Answers:
    """Return what writes answers such as this one; `labels`, where there are any, score them.

    output: a folder; or, for one label map, a .nii or .nii.gz; or, for a table, a .csv; or, for features, a .npz.
    label_names: the class of each index in label maps that hold the truth. options: of label maps. title: of
    the model, for DICOM. InputError if it cannot be, or would overwrite an input.
    """
    if isinstance(answer, Masks) and target is not None:
        maps: dict[str, Any] = {"labels": labels, "label_names": label_names, "options": options, "title": title}
        return LabelMaps(output, target, cases, **maps)
    if isinstance(answer, Probabilities | Values) and target is not None:
        place = _file(output, TABLE)
        columns = _probabilities(target) if isinstance(answer, Probabilities) else _VALUE
        keys = [case.key for case in cases]
        scores = None if labels is None else TableScores(labels, keys, target, place.with_name(TABLE_SCORES))
        return Table(place, *columns, scores=scores)
    if isinstance(answer, Features):
        return FeatureVectors(_file(output, VECTORS))
    raise InputError(f"--output: answers of type {type(answer).__name__} have no file; ask for features: --features")


class LabelMaps:
    """One NIfTI a case, uint8, with the shape and the place of its input; scored where the truth is known.

    With probabilities: probabilities/ beside the maps holds a float32 file of the same name, (X, Y, Z, K). With
    dicom_seg: a .dcm of the same name lies beside each map.
    """

    def __init__(
        self,
        output: Path,
        target: AbstractTarget,
        cases: Sequence[InputCase],
        *,
        labels: Path | None = None,
        label_names: Sequence[str] = (),
        options: MapOptions = PLAIN,
        title: str = "",
    ) -> None:
        single = len(cases) == 1 and output.name.lower().endswith(NIFTI)
        _make_folder(output.parent if single else output)
        self.place, self.target, self.title = output, target, title
        self.paths = {case.key: output if single else output / f"{case.key}.nii.gz" for case in cases}
        kept = options.largest_component
        self.largest = None if kept is None else [target.names.index(name) for name in kept or target.answers[1:]]
        folder = (output.parent if single else output) / PROBABILITIES
        self.probabilities = {key: folder / path.name for key, path in self.paths.items() if options.probabilities}
        if self.probabilities:
            _make_folder(folder)
        self.with_dicom = options.dicom_seg
        _spare_inputs([*self.paths.values(), *self.probabilities.values()], cases)
        table = output.with_name(SCORES) if single else output / SCORES
        self.scores = None
        if labels is not None:
            self.scores = CaseScores(labels, list(self.paths), target, table, label_names=label_names)

    def add(self, answered: Answered) -> None:
        """Write the label of each voxel of the input: its likeliest class, or what its regions are written as."""
        case, affine = answered.case, np.asarray(answered.members["json"]["affine"])
        stored = read_volume(case.files[0], orientation=None)
        place = stored.array.shape[:0:-1], np.asarray(stored.affine)
        labels_DHW = self.target.label_map(answered.tensor[None])[0].byte().cpu().numpy()
        labels_XYZ = onto_grid(labels_DHW, affine, *place)
        if self.largest is not None:
            labels_XYZ = largest_components(labels_XYZ, self.largest)
        write_map(self.paths[case.key], labels_XYZ, stored.affine, like=case.files[0])
        if self.with_dicom:
            beside = self.paths[case.key]
            beside = beside.with_name(f"{stem(beside, NIFTI)}.dcm")
            write_dicom_seg(beside, labels_XYZ, case.files[0], self.target, algorithm=self.title)
        if (path := self.probabilities.get(case.key)) is not None:
            shares = [onto_grid(share_DHW, affine, *place) for share_DHW in answered.tensor.cpu().numpy()]
            write_map(path, np.stack(shares, axis=-1), stored.affine, like=case.files[0])
        if self.scores is not None:
            self.scores.add(case.key, labels_XYZ, stored)

    def close(self) -> str:
        """Write the scores and return them; the maps are written already."""
        if self.scores is None:
            return ""
        self.scores.close()
        return str(self.scores)


class Table:
    """One CSV: a row a case, its key first; scored where the truth is known."""

    def __init__(
        self,
        place: Path,
        header: Sequence[str],
        cells: Callable[[Tensor], list[str]],
        *,
        scores: TableScores | None = None,
    ) -> None:
        """cells: what a row says after the key, of one answer; under `header`."""
        self.place, self.header, self.cells, self.scores = place, header, cells, scores
        self.rows: list[list[str]] = []

    def add(self, answered: Answered) -> None:
        """Note the row of one case."""
        self.rows.append([answered.case.key, *self.cells(answered.tensor)])
        if self.scores is not None:
            self.scores.add(answered.case.key, answered.tensor.cpu())

    def close(self) -> str:
        """Write the file whole and give it its name; return the scores, if any."""
        write_csv(self.place, [["key", *self.header], *self.rows])
        return "" if self.scores is None else self.scores.close()


class FeatureVectors:
    """One .npz: `keys` (N,) and pooled `features` (N, F), float32."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.found: dict[str, np.ndarray] = {}

    def add(self, answered: Answered) -> None:
        """Note the features (F,) of one case."""
        self.found[answered.case.key] = answered.tensor.cpu().numpy()

    def close(self) -> str:
        """Write the file whole and give it its name."""
        content = io.BytesIO()
        np.savez(content, keys=np.array(list(self.found)), features=np.stack(list(self.found.values())))
        write_whole(self.place, content.getvalue())
        return ""


def _probabilities(target: AbstractTarget) -> tuple[list[str], Callable[[Tensor], list[str]]]:
    """Return the header of a table of probabilities, and what makes its rows: the likeliest class, or the labels."""

    def cells(probabilities: Tensor) -> list[str]:
        values = probabilities.tolist()
        likely = [max(range(len(values)), key=values.__getitem__)]
        if not target.exclusive:
            likely = [i for i, value in enumerate(values) if value > 0.5]
        return ["; ".join(target.names[i] for i in likely), *(f"{value:.6f}" for value in values)]

    return ["predicted", *(f"probability_{name}" for name in target.names)], cells


def _file(output: Path, name: str) -> Path:
    """Return the output itself where it has the ending of `name`, else `name` in it; its folder is made."""
    file = output if output.suffix.lower() == Path(name).suffix else output / name
    _make_folder(file.parent)
    return file


def onto_grid(
    labels_DHW: np.ndarray, affine: np.ndarray, shape_XYZ: tuple[int, ...], onto_affine: np.ndarray
) -> np.ndarray:
    """Return the label, or any value, nearest to each voxel of another grid, (X, Y, Z); exact where both hold the same.

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


def write_map(path: Path, array_XYZ: np.ndarray, affine: Affine, *, like: Path) -> None:
    """Write labels, or probabilities (X, Y, Z, K), as NIfTI, whole; where `like` is one, its header says to the bit
    where the voxels lie.
    """
    import nibabel as nib

    image: Any = nib.Nifti1Image(np.ascontiguousarray(array_XYZ), np.asarray(affine))
    image.header.set_xyzt_units("mm")
    if like.is_file() and (source := nifti_header(like)) is not None:
        header = type(source)()
        header.set_data_dtype(array_XYZ.dtype)
        for name in _GEOMETRY:
            header[name] = source[name]
        header["pixdim"][:4] = source["pixdim"][:4]
        image_class: Any = nib.Nifti2Image if isinstance(source, nib.Nifti2Header) else nib.Nifti1Image
        image = image_class(np.ascontiguousarray(array_XYZ), None, header)
    content = image.to_bytes()
    write_whole(path, gzip.compress(content, 1, mtime=0) if path.name.lower().endswith(".gz") else content)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise InputError(f"--output: {folder} cannot be a folder: {fault.strerror}; give another path") from fault


def _spare_inputs(paths: Any, cases: Sequence[InputCase]) -> None:
    inputs = {file.resolve() for case in cases for file in case.files}
    if taken := [path for path in paths if path.resolve() in inputs]:
        raise InputError(f"--output: {taken[0]} is an input and would be overwritten; give another folder")
