"""TotalSegmentator: over 100 structures in 1,228 CT, or 50 in 616 MRI, one mask file each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from inflate3d.contracts import SPLITS, Case, DatasetCard, InputSpec, Intensity, RawSample
from inflate3d.data.raw.files import require_file, stem, visible
from inflate3d.data.raw.labelled_volumes import Files, LabelledVolumes, Labels, numbered
from inflate3d.data.raw.tables import read_table
from inflate3d.errors import InputError, unknown_name

_HU = (-1000.0, 1000.0)
_MRI: dict[str, Any] = {
    "name": "totalsegmentator_mri",
    "title": "TotalSegmentator MRI",
    "modality": "mri",
    "url": "https://doi.org/10.5281/zenodo.11367004",
    "licence": "CC-BY-NC-SA-2.0",
    "commercial_use": False,
    "citation": "Akinci D'Antonoli et al., TotalSegmentator MRI, Radiology 314, 2025, arXiv:2405.19492",
}


class TotalSegmentator(LabelledVolumes):
    """s0001/{ct.nii.gz, segmentations/spleen.nii.gz, ...} and meta.csv (image_id;...;split), release 1 or 2.

    modality: ct, or mri for the MRI release (s0001/mri.nii.gz). The labels are the mask files of the first case, and
    every case must have the same; their values are 1, 2, ... in the order of their names. Where two files claim a
    voxel the later counts. Splits are those of meta.csv; without val cases there, a fifth of train is val. Download of
    the CT, 24 GB: wget https://zenodo.org/records/10047292/files/Totalsegmentator_dataset_v201.zip, then unzip it.
    """

    base_card = DatasetCard(
        name="totalsegmentator",
        media="volume",
        title="TotalSegmentator CT",
        modality="ct",
        url="https://zenodo.org/records/10047292",
        licence="CC-BY-4.0",
        commercial_use=True,
        weights_may_be_published=True,
        citation="Wasserthal et al., TotalSegmentator: Robust Segmentation of 104 Anatomic Structures in CT Images, "
        "Radiology: Artificial Intelligence 5, 2023, doi:10.1148/ryai.230024",
        input=InputSpec(("ct",), None, "RAS", Intensity("window", _HU)),
    )
    holds = "meta.csv and a folder per case, s0001 and its like"

    def __init__(
        self,
        root: str | Path,
        *,
        modality: str = "ct",
        labels: Labels | None = None,
        spacing_mm: Sequence[float] | None = None,
        window: Sequence[float] | None = None,
        split_file: str | None = None,
    ) -> None:
        if modality not in ("ct", "mri"):
            raise unknown_name("modality", modality, ("ct", "mri"), where="totalsegmentator")
        super().__init__(root, labels=labels, spacing_mm=spacing_mm, window=window, split_file=split_file)
        self._modality = modality
        self._table = require_file(self.root / "meta.csv", where="totalsegmentator", holds=self.holds)

    @property
    def card(self) -> DatasetCard:
        """The card of one modality, with the structures that the first case has."""
        card = super().card
        if self._modality == "ct":
            return card
        spec = replace(card.input, channels=("mri",))
        spec = spec if self._window else replace(spec, intensity=Intensity("zscore"))
        return replace(card, input=spec, **_MRI)

    def labels(self) -> Mapping[str, int]:
        """The mask files of the first case, sorted by name: 1, 2, ..."""
        return self._labels

    def found(self) -> list[Files]:
        """The cases in the order of meta.csv."""
        rows = read_table(self._table, required=("image_id", "split"))
        for row in rows:
            if row["split"] not in SPLITS:
                raise unknown_name("split", row["split"], SPLITS, where=f"{self._table} line {row.line}")
        has_val = any(row["split"] == "val" for row in rows)
        return [
            Files(
                case := row["image_id"],
                (f"{case}/{self._modality}.nii.gz",),
                tuple((f"{case}/segmentations/{name}.nii.gz", name) for name in self._labels),
                row["split"] if has_val or row["split"] != "train" else None,  # type: ignore[arg-type]
            )
            for row in rows
        ]

    def read(self, case: Case) -> RawSample:
        """Read the image and gather its masks. InputError for a mask file that the first case does not have."""
        extra = sorted(self._masks_of(case.source.name) - set(self._labels))
        if extra:
            raise InputError(
                f"{case.key}: segmentations holds {extra[0]}.nii.gz, the first case does not; all cases need the same"
            )
        return super().read(case)

    @cached_property
    def _labels(self) -> Mapping[str, int]:
        rows = read_table(self._table, required=("image_id", "split"))
        names = sorted(self._masks_of(rows[0]["image_id"]))
        if not names:
            raise InputError(
                f"totalsegmentator: {self.root / rows[0]['image_id']} holds no segmentations/*.nii.gz; "
                "complete the folder, its masks name the classes"
            )
        return numbered(*names)

    def _masks_of(self, case: str) -> set[str]:
        return {stem(path) for path in visible(self.root / case, "segmentations/*.nii.gz")}

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write four cases of three structures, of which two touch."""
        from inflate3d.data.raw.examples import boxes, write_image, write_mask

        lines = ["image_id;age;gender;institute;study_type;split"]
        for number, split in enumerate(("train", "train", "val", "test")):
            case = f"s{number:04d}"
            parts = {"liver": boxes((1,)), "kidney_left": boxes((0, 1)), "kidney_right": boxes((0, 0, 0, 1))}
            write_image(root / case / "ct.nii.gz", sum(parts.values()), seed=number, gain=80)  # type: ignore[arg-type]
            for name, mask in parts.items():
                write_mask(root / case / "segmentations" / f"{name}.nii.gz", mask)
            lines.append(f"{case};60;m;A;ct abdomen;{split}")
        (root / "meta.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {"root": str(root)}
