"""Your own volumes, listed in a CSV with the column image: a label, a mask, numbers, or nothing at all for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inflate3d.contracts import DatasetCard, InputSpec
from inflate3d.data.raw.files import as_names, require_file, require_folder
from inflate3d.data.raw.listed_volumes import COLUMNS, ListedVolumes, Said, is_numeric
from inflate3d.data.raw.modality import guess_modality
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.data.raw.tables import read_table
from inflate3d.errors import InputError


class VolumeCSV(ListedVolumes):
    """A CSV with a header: `image`, perhaps `label`, `mask` and columns of numbers, and `split` (train, val, test),
    `group`, `key`.

    image: a path relative to root (.nii.gz, .nrrd, .mha, .npy, or a folder with a DICOM series); several channels are
    separated by ';'. label: a class name; `classes` gives their order. mask: a path to a label map in every row; then
    `classes` names its labels, background first. values: columns of numbers with their units, "age:years,score".
    An empty cell means that the label or number is unknown; a table without any is unlabelled. A column of groups
    (patients) keeps each in one split. key: else the file's name, with its folders where names repeat. encoding: of the
    CSV, where it is neither UTF-8 nor marked. modality chooses the stem: ct, mri, mask, ...
    Intensities: `window` if given; else ct uses 0.5 to 99.5 % of the values of up to 20 training volumes, mask 0 to 1,
    all others a z-score.
    """

    base_card = DatasetCard(
        name="volume_csv",
        media="volume",
        title="Volumes listed in a CSV",
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
        csv: str = "cases.csv",
        encoding: str | None = None,
        classes: str | Sequence[str] | None = None,
        values: str | Sequence[str] | None = None,
        channels: str | Sequence[str] | None = None,
        orientation: str | None = "RAS",
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
        folder = require_folder(root, where="volume_csv", holds=csv)
        file = require_file(folder / csv, where="volume_csv", holds="a CSV with the column image")
        units = {n: unit for n, _, unit in (entry.partition(":") for entry in as_names(values))}
        rows = read_table(file, required=("image", *units), allowed=(*COLUMNS, *units), encoding=encoding)
        super().__init__(
            folder,
            rows,
            file=file,
            said=Said(name or folder.name, url, licence, citation, commercial_use, weights_may_be_published),
            modality=modality,
            classes=classes,
            units=units,
            channels=channels,
            orientation=orientation,
            spacing_mm=spacing_mm,
            window=window,
            rule=SplitRule(val_fraction, val_count, split_file, seed),
        )

    @classmethod
    def recognise(cls, root: Path) -> dict[str, Any] | None:
        """One CSV with the column image, and label, mask or columns of numbers; the modality from three volumes."""
        tables = [file for file in sorted(root.glob("*.csv")) if "image" in _columns(file)]
        if len(tables) != 1:
            return None
        rows = read_table(tables[0], required=("image",))
        images = [root / row["image"].split(";")[0].strip() for row in rows if row.get("image")]
        numbers = [name for name in rows[0] if name not in COLUMNS and is_numeric(rows, name)] if rows else []
        told = {"values": numbers} if numbers else {}
        return {"root": str(root), "csv": tables[0].name, "modality": guess_modality(images), **told}

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write eight CT-like volumes of 10x12x14, dark or bright in the middle, of four patients, and cases.csv."""
        import numpy as np
        from inflate3d.data.raw.readers import write_nifti

        (root / "images").mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(0)
        lines = ["image,label,group"]
        for i in range(8):
            image = generator.normal(0, 20, (10, 12, 14))
            image[3:7, 4:8, 4:10] += 300 if i % 2 else -300
            affine = np.diag([1.5, 1.5, 2.5, 1.0])
            write_nifti(root / "images" / f"scan_{i}.nii.gz", image.astype(np.int16), affine)
            lines.append(f"images/scan_{i}.nii.gz,{'bright' if i % 2 else 'dark'},patient_{i // 2}")
        (root / "cases.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {"root": str(root), "modality": "ct", "val_fraction": 0.25}


def _columns(file: Path) -> tuple[str, ...]:
    """Return a table's columns in small letters; () where the file is no table."""
    try:
        rows = read_table(file, required=("image",))
    except InputError:
        return ()
    return tuple(rows[0]) if rows else ()
