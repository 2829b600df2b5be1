"""Your own DICOM series, anywhere below a folder: unlabelled, or with a CSV of labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inflate3d.contracts import DatasetCard, InputSpec
from inflate3d.data.raw.files import as_names, require_folder
from inflate3d.data.raw.listed_volumes import ListedVolumes, Said
from inflate3d.data.raw.modality import guess_modality
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.data.raw.tables import Row
from inflate3d.data.raw.volume_folders import folder_rows, units_of
from inflate3d.errors import InputError


class DicomFolder(ListedVolumes):
    """Every DICOM series below root, such as PATIENT/STUDY/SERIES, a case each; several may lie in one folder.

    Localizers, captures of a screen and what is no image are passed over and named; slices that are no regular grid are
    refused by name when the build reads them. csv: a table below root with the column image (the path or the name of a
    series' folder; FOLDER/UID of one among several) and perhaps label, split, group, key and columns of numbers
    (`values`, "age:years,score"); what it leaves out is unknown. Two patterns are searched in the path, and their first
    group is meant: group_pattern keeps a patient in one split, "^([^/]+)" where the first folder is the patient;
    label_pattern is the class, "^([^/]+)/" where the first folder is one.
    modality chooses the stem: ct, mri, ... Intensities: `window`; else ct measures it on up to 20 training volumes,
    and all others have a z-score.
    """

    base_card = DatasetCard(
        name="dicom_folder",
        media="volume",
        title="DICOM series below a folder",
        modality="as you state",
        url="",
        licence="unknown",
        commercial_use=None,
        weights_may_be_published=False,
        citation="",
        input=InputSpec(orientation="RAS"),
    )

    def __init__(
        self,
        root: str | Path,
        *,
        modality: str,
        csv: str | None = None,
        classes: str | Sequence[str] | None = None,
        values: str | Sequence[str] | None = None,
        group_pattern: str | None = None,
        label_pattern: str | None = None,
        spacing_mm: Sequence[float] | None = None,
        window: Sequence[float] | None = None,
        val_fraction: float = 0.2,
        val_count: int | None = None,
        split_file: str | None = None,
        seed: int = 0,
        name: str | None = None,
        url: str = "",
        licence: str = "unknown",
        citation: str = "",
        commercial_use: bool | None = None,
        weights_may_be_published: bool = False,
    ) -> None:
        folder = require_folder(root, where="dicom_folder", holds="folders of DICOM files")
        if not (paths := _series(folder)):
            raise InputError(f"dicom_folder: neither {folder} nor a folder below it holds a DICOM series")
        patterns = {"group": group_pattern, "label": label_pattern}
        rows, file = folder_rows(
            paths, folder, csv=csv, values=as_names(values), patterns=patterns, where="dicom_folder"
        )
        super().__init__(
            folder,
            [_of_root(row, folder) for row in rows],
            file=file,
            said=Said(name or folder.name, url, licence, citation, commercial_use, weights_may_be_published),
            modality=modality,
            classes=classes,
            units=units_of(as_names(values)),
            channels=None,
            orientation="RAS",
            spacing_mm=spacing_mm,
            window=window,
            rule=SplitRule(val_fraction, val_count, split_file, seed),
        )

    @classmethod
    def recognise(cls, root: Path) -> dict[str, Any] | None:
        """A folder a class, CLASS/SERIES or CLASS/PATIENT/.../SERIES, each with series of two patients at least."""
        from inflate3d.data.raw.dicom_study import holds_dicom_below, patient_of

        if not holds_dicom_below(root):
            return None
        series = _series(root)
        patients: dict[str, set[str]] = {}
        for path in series:
            patients.setdefault(path.partition("/")[0], set()).add(patient_of(root / path))
        depth = min(path.count("/") for path in series)
        if depth == 0 or len(patients) < 2 or min(map(len, patients.values())) < 2:
            return None
        groups = {} if depth == 1 else {"group_pattern": "^[^/]+/([^/]+)/"}
        modality = guess_modality([root / path for path in series])
        return {"root": str(root), "modality": modality, "label_pattern": "^([^/]+)/", **groups}

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write four CT series of two patients, five slices each of 1 x 1 x 2 mm, and labels.csv."""
        import numpy as np
        from inflate3d.data.raw.examples import write_dicom_series

        lines = ["image;label"]
        for i in range(4):
            series = f"patient{i // 2}/study1/series{i}"
            scan = np.zeros((5, 12, 14), np.int16)
            scan[:, 4:8, 4:10] = 300 if i % 2 else -300
            write_dicom_series(root / series, scan, series_uid=f"1.2.3.{i + 1}", patient=f"patient{i // 2}")
            lines.append(f"{series};{'bright' if i % 2 else 'dark'}")
        (root / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {
            "root": str(root),
            "modality": "ct",
            "csv": "labels.csv",
            "group_pattern": "^([^/]+)",
            "val_fraction": 0.5,
        }


def _series(root: Path) -> list[str]:
    """Return the series by their paths below root, sorted; "." is root itself."""
    from inflate3d.data.raw.dicom_study import series_below

    return sorted(path.relative_to(root).as_posix() for path in series_below(root))


def _of_root(row: Row, root: Path) -> Row:
    """Return the row; the series that lies in root itself is called as root is."""
    return Row(row.line, {**row, "key": row.get("key") or root.name}) if row["image"] == "." else row
