"""Your own NIfTI files below a folder: unlabelled, a folder a class, or with a CSV; 4-D files by frame or channel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inflate3d.contracts import DatasetCard, InputSpec
from inflate3d.data.raw.files import as_names, class_folders, require_folder, visible
from inflate3d.data.raw.keys import file_names
from inflate3d.data.raw.listed_volumes import ListedVolumes, Said
from inflate3d.data.raw.modality import guess_modality
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.data.raw.tables import Row
from inflate3d.data.raw.volume_folders import folder_rows, units_of
from inflate3d.errors import InputError, unknown_name

_FRAMES = ("channels", "cases")


class NiftiFolder(ListedVolumes):
    """Every .nii and .nii.gz below root that matches `pattern`, each a volume; hidden files are left out.

    pattern: "**/*_T1w.nii.gz" takes some; default all. frames: what the fourth axis of a 4-D file is: `channels` of one
    volume, as many in every file, or `cases`, such as the times of a cine or fMRI, one volume each, in one split.
    csv: a table below root with the column image (a path or a name) and perhaps label, split, group, key and columns of
    numbers (`values`, "age:years,score"); what it leaves out is unknown. Three patterns are searched in the path, and
    their first group is meant: group_pattern keeps a patient in one split, such as "(sub-[^/]+)"; label_pattern is the
    class, "([^/]+)/[^/]+$" for a folder a class; split_pattern the split, "^(train|val|test)/". modality chooses the
    stem: ct, mri, mask, ...
    Intensities: `window`; else ct measures it on up to 20 training volumes, mask has 0 to 1, all others a z-score.
    """

    base_card = DatasetCard(
        name="nifti_folder",
        media="volume",
        title="NIfTI files below a folder",
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
        pattern: str = "**/*.nii*",
        frames: str = "channels",
        csv: str | None = None,
        classes: str | Sequence[str] | None = None,
        values: str | Sequence[str] | None = None,
        group_pattern: str | None = None,
        label_pattern: str | None = None,
        split_pattern: str | None = None,
        channels: str | Sequence[str] | None = None,
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
        folder = require_folder(root, where="nifti_folder", holds="NIfTI files")
        if frames not in _FRAMES:
            raise unknown_name("value of frames", frames, _FRAMES, where="nifti_folder")
        paths = _matching(folder, pattern)
        patterns = {"group": group_pattern, "label": label_pattern, "split": split_pattern}
        rows, file = folder_rows(
            paths, folder, csv=csv, values=as_names(values), patterns=patterns, where="nifti_folder"
        )
        if frames == "cases":
            rows = [frame for row in _named(rows) for frame in _frames(row, folder)]
        elif channels is None and (count := _frame_count(folder / paths[0])) > 1:
            channels = [f"{modality}_{i}" for i in range(count)]
        super().__init__(
            folder,
            rows,
            file=file,
            said=Said(name or folder.name, url, licence, citation, commercial_use, weights_may_be_published),
            modality=modality,
            classes=classes,
            units=units_of(as_names(values)),
            channels=channels,
            orientation="RAS",
            spacing_mm=spacing_mm,
            window=window,
            rule=SplitRule(val_fraction, val_count, split_file, seed),
        )

    @classmethod
    def recognise(cls, root: Path) -> dict[str, Any] | None:
        """NIfTI files in folders, of which there is one a class, perhaps below train, val and test."""
        if not class_folders(root, (".nii", ".nii.gz")):
            return None
        paths = _matching(root, "**/*.nii*")
        splits = {} if paths[0].count("/") == 1 else {"split_pattern": "^([^/]+)/"}
        modality = guess_modality([root / path for path in paths])
        return {"root": str(root), "modality": modality, "label_pattern": "([^/]+)/[^/]+$", **splits}

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write four patients with two scans each in BIDS folders, and labels.csv."""
        from inflate3d.data.raw.examples import boxes, write_image

        lines = ["image,label,age"]
        for i in range(8):
            patient, label = f"sub-{i // 2:02d}", ("bright", "dark")[i % 2]
            file = f"{patient}/ses-{i % 2}/anat/{patient}_ses-{i % 2}_T1w.nii.gz"
            write_image(root / file, boxes((1, 1)), seed=i, gain=80 if label == "bright" else -80)
            lines.append(f"{file},{label},{50 + i}")
        (root / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {
            "root": str(root),
            "modality": "mri",
            "csv": "labels.csv",
            "values": "age:years",
            "group_pattern": "(sub-[^/]+)",
        }


def _matching(folder: Path, pattern: str) -> list[str]:
    """Return the NIfTI files of a pattern, relative to the folder. InputError if there is none."""
    found = [p for p in visible(folder, pattern) if p.name.lower().endswith((".nii", ".nii.gz")) and not p.is_dir()]
    if not found:
        raise InputError(f"nifti_folder: {folder} holds no .nii or .nii.gz that matches {pattern!r}")
    return [path.relative_to(folder).as_posix() for path in found]


def _frame_count(file: Path) -> int:
    """Return how many volumes a file's header states; 1 where it cannot be read: reading the case says why."""
    from inflate3d.data.raw.nifti import nifti_header

    try:
        header = nifti_header(file)
    except Exception:  # nibabel and zlib raise several kinds on broken files
        return 1
    shape = header.get_data_shape() if header is not None else ()
    return max((int(n) for n in shape[3:]), default=1)


def _named(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with a key each."""
    names = file_names([row["image"] for row in rows])
    return [Row(row.line, {**row, "key": row.get("key") or name}) for row, name in zip(rows, names, strict=True)]


def _frames(row: Row, folder: Path) -> list[Row]:
    """Return a row for each frame of a file, all of one group."""
    group = row.get("group") or row["image"]
    return [
        Row(row.line, {**row, "key": f"{row['key']}-{i:03d}", "group": group, "frame": str(i)})
        for i in range(_frame_count(folder / row["image"]))
    ]
