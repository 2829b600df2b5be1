"""BTCV abdomen (Beyond the Cranial Vault): 13 organs in 30 portal venous CT."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from inflate3d.contracts import DatasetCard, InputSpec, Intensity
from inflate3d.data.raw.files import visible
from inflate3d.data.raw.labelled_volumes import SOFT_TISSUE_HU, Files, LabelledVolumes, numbered, target_of

_LABELS = numbered(
    *("spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta"),
    *("inferior vena cava", "portal and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland"),
)


class BTCV(LabelledVolumes):
    """RawData/Training/{img/img0001.nii.gz, label/label0001.nii.gz} of the abdomen task; root: RawData, or above it.

    There is no official validation split. The test images have no labels and are not used. To get it: register at
    https://www.synapse.org, open syn3193805, join the challenge (its terms), and download Abdomen/RawData.zip.
    """

    base_card = DatasetCard(
        name="btcv",
        media="volume",
        title="BTCV: multi-atlas labelling beyond the cranial vault, abdomen",
        modality="ct",
        url="https://www.synapse.org/#!Synapse:syn3193805",
        licence="unknown",
        commercial_use=None,
        weights_may_be_published=False,
        citation="Landman et al., MICCAI Multi-Atlas Labeling Beyond the Cranial Vault - Workshop and Challenge, 2015, "
        "doi:10.7303/syn3193805",
        targets=target_of(_LABELS),
        input=InputSpec(("ct",), None, "RAS", Intensity("window", SOFT_TISSUE_HU)),
    )
    label_values = _LABELS
    holds = "RawData/Training/img and RawData/Training/label"

    def found(self) -> list[Files]:
        """The training cases by number."""
        images = [p for p in visible(self.root, "**/img/img*.nii.gz") if re.fullmatch(r"img\d+\.nii\.gz", p.name)]
        pairs = [(p, p.parents[1] / "label" / p.name.replace("img", "label")) for p in images]
        return [
            Files(image.name.split(".")[0], (_within(image, self.root),), ((_within(label, self.root), None),))
            for image, label in pairs
            if label.parent.is_dir()
        ]

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write four training cases and one test image."""
        from inflate3d.data.raw.examples import boxes, write_image, write_mask

        for number in range(1, 5):
            mask = boxes((1, 6, 11, 13))
            write_image(root / f"RawData/Training/img/img{number:04d}.nii.gz", mask, seed=number)
            write_mask(root / f"RawData/Training/label/label{number:04d}.nii.gz", mask)
        write_image(root / "RawData/Testing/img/img0061.nii.gz", boxes((1,)))
        return {"root": str(root), "val_count": 1}


def _within(file: Path, root: Path) -> str:
    return str(file.relative_to(root))
