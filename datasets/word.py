"""WORD: 16 organs of the whole abdomen in 150 CT."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from inflate3d.contracts import DatasetCard, InputSpec, Intensity, Split
from inflate3d.data.raw.files import visible
from inflate3d.data.raw.labelled_volumes import SOFT_TISSUE_HU, Files, LabelledVolumes, numbered, target_of

_LABELS = numbered(
    *("liver", "spleen", "left kidney", "right kidney", "stomach", "gallbladder", "esophagus", "pancreas"),
    *("duodenum", "colon", "intestine", "adrenal", "rectum", "bladder", "head of left femur", "head of right femur"),
)
_PARTS: dict[str, Split] = {"Tr": "train", "Val": "val", "Ts": "test"}


class WORD(LabelledVolumes):
    """WORD-V0.1.0/: imagesTr, labelsTr, imagesVal, labelsVal, imagesTs, and labelsTs where it was released to you.

    Splits are the official ones; test cases without a label are not used. To get it: as
    https://github.com/HiLab-git/WORD says, ask for the download by a Google account and for the password by the e-mail
    of your institution, stating academic use.
    """

    base_card = DatasetCard(
        name="word",
        media="volume",
        title="WORD: whole abdominal organ dataset",
        modality="ct",
        url="https://github.com/HiLab-git/WORD",
        licence="GPL-3.0; its authors add: for academic research, not for clinical or commercial use",
        commercial_use=False,
        weights_may_be_published=False,
        citation="Luo et al., WORD: A large scale dataset, benchmark and clinical applicable study for abdominal organ "
        "segmentation from CT image, Medical Image Analysis 82, 2022, arXiv:2111.02403",
        targets=target_of(_LABELS),
        input=InputSpec(("ct",), None, "RAS", Intensity("window", SOFT_TISSUE_HU)),
    )
    label_values = _LABELS
    holds = "WORD's imagesTr, labelsTr, imagesVal and labelsVal"

    def found(self) -> list[Files]:
        """The cases of the three parts by name; of the test part those with a label."""
        files = []
        for part, split in _PARTS.items():
            for image in visible(self.root, f"images{part}/word_*.nii.gz"):
                label = f"labels{part}/{image.name}"
                if split != "test" or os.path.lexists(self.root / label):
                    files.append(
                        Files(image.name.split(".")[0], (f"images{part}/{image.name}",), ((label, None),), split)
                    )
        return files

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write two training, one validation and one test case, and a test image without a label."""
        from inflate3d.data.raw.examples import boxes, write_image, write_mask

        for number, part in ((2, "Tr"), (3, "Tr"), (1, "Val"), (14, "Ts")):
            mask = boxes((1, 2, 15, 16))
            write_image(root / f"images{part}/word_{number:04d}.nii.gz", mask, seed=number)
            write_mask(root / f"labels{part}/word_{number:04d}.nii.gz", mask)
        write_image(root / "imagesTs/word_0015.nii.gz", boxes((1,)))
        return {"root": str(root)}
