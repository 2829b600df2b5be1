"""KiTS23: kidneys, renal tumours and cysts in 489 contrast-enhanced CT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inflate3d.contracts import DatasetCard, InputSpec, Intensity
from inflate3d.data.raw.files import visible
from inflate3d.data.raw.labelled_volumes import SOFT_TISSUE_HU, Files, LabelledVolumes, numbered, target_of

_LABELS = numbered("kidney", "tumor", "cyst")


class KiTS23(LabelledVolumes):
    """dataset/case_00000/{imaging.nii.gz, segmentation.nii.gz}; root: dataset, or the repository that holds it.

    Label values are those of segmentation.nii.gz: 1 kidney, 2 tumor, 3 cyst. There is no official validation split.
    Download: git clone https://github.com/neheller/kits23 && pip install -e kits23 && kits23_download_data
    """

    base_card = DatasetCard(
        name="kits23",
        media="volume",
        title="KiTS23: kidney and kidney tumor segmentation",
        modality="ct",
        url="https://github.com/neheller/kits23",
        licence="CC-BY-NC-SA-4.0",
        commercial_use=False,
        weights_may_be_published=True,
        citation="Heller et al., The KiTS21 Challenge: Automatic segmentation of kidneys, renal tumors, and renal "
        "cysts in corticomedullary-phase CT, arXiv:2307.01984, 2023",
        targets=target_of(_LABELS),
        input=InputSpec(("ct",), None, "RAS", Intensity("window", SOFT_TISSUE_HU)),
    )
    label_values = _LABELS
    holds = "dataset/case_00000 and its like"

    def found(self) -> list[Files]:
        """The case folders by number."""
        folder = self.root / "dataset" if (self.root / "dataset").is_dir() else self.root
        cases = [p.relative_to(self.root) for p in visible(folder, "case_[0-9]*") if p.is_dir()]
        return [Files(c.name, (f"{c}/imaging.nii.gz",), ((f"{c}/segmentation.nii.gz", None),)) for c in cases]

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write four cases, every label in each."""
        from inflate3d.data.raw.examples import boxes, write_image, write_mask

        for number in (0, 1, 2, 400):
            mask = boxes((1, 2, 3))
            write_image(root / f"dataset/case_{number:05d}/imaging.nii.gz", mask, seed=number)
            write_mask(root / f"dataset/case_{number:05d}/segmentation.nii.gz", mask)
        return {"root": str(root), "val_count": 1}
