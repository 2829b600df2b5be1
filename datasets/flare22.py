"""FLARE22: 13 abdominal organs in 50 labelled CT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inflate3d.contracts import DatasetCard, InputSpec, Intensity
from inflate3d.data.raw.files import visible
from inflate3d.data.raw.labelled_volumes import SOFT_TISSUE_HU, Files, LabelledVolumes, numbered, target_of

_LABELS = numbered(
    *("liver", "right kidney", "spleen", "pancreas", "aorta", "inferior vena cava", "right adrenal gland"),
    *("left adrenal gland", "gallbladder", "esophagus", "stomach", "duodenum", "left kidney"),
)


class FLARE22(LabelledVolumes):
    """images/FLARE22_Tr_0001_0000.nii.gz and labels/FLARE22_Tr_0001.nii.gz; root: that folder, or the one above.

    The 50 labelled cases; there is no official validation split. The 2,000 unlabelled ones can be read by nifti_folder.
    To get it: join https://flare22.grand-challenge.org, accept its rules, and download FLARE22_LabeledCase50 from its
    page Dataset.
    """

    base_card = DatasetCard(
        name="flare22",
        media="volume",
        title="FLARE22: fast and low-resource abdominal organ segmentation",
        modality="ct",
        url="https://flare22.grand-challenge.org/Dataset/",
        licence="unknown",
        commercial_use=None,
        weights_may_be_published=False,
        citation="Ma et al., Unleashing the strengths of unlabelled data in deep learning-assisted pan-cancer "
        "abdominal organ quantification: the FLARE22 challenge, The Lancet Digital Health 6, 2024, arXiv:2308.05862",
        targets=target_of(_LABELS),
        input=InputSpec(("ct",), None, "RAS", Intensity("window", SOFT_TISSUE_HU)),
    )
    label_values = _LABELS
    holds = "images and labels of FLARE22_LabeledCase50"

    def found(self) -> list[Files]:
        """The labelled cases by number."""
        files = []
        for image in visible(self.root, "**/images/FLARE22_Tr_*_0000.nii.gz"):
            name = image.name.removesuffix("_0000.nii.gz")
            label = image.parents[1] / "labels" / f"{name}.nii.gz"
            paths = [str(path.relative_to(self.root)) for path in (image, label)]
            files.append(Files(name, (paths[0],), ((paths[1], None),)))
        return files

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write four labelled cases."""
        from inflate3d.data.raw.examples import boxes, write_image, write_mask

        folder = root / "FLARE22_LabeledCase50"
        for number in range(1, 5):
            mask = boxes((1, 2, 13))
            write_image(folder / f"images/FLARE22_Tr_{number:04d}_0000.nii.gz", mask, seed=number)
            write_mask(folder / f"labels/FLARE22_Tr_{number:04d}.nii.gz", mask)
        return {"root": str(root), "val_count": 1}
