"""LiTS: the liver and its tumours in 131 CT of seven hospitals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from inflate3d.contracts import DatasetCard, InputSpec, Intensity
from inflate3d.data.raw.files import visible
from inflate3d.data.raw.labelled_volumes import SOFT_TISSUE_HU, Files, LabelledVolumes, numbered, target_of
from inflate3d.errors import InputError

_LABELS = numbered("liver", "tumor")


class LiTS(LabelledVolumes):
    """volume-0.nii and segmentation-0.nii, .nii or .nii.gz, in any folders below root (Training Batch 1 and 2).

    There is no official validation split, and the test volumes have no labels. Sources state several licences, so none
    is stated here. To get it: register at https://competitions.codalab.org/competitions/17094, accept the terms, and
    download Training_Batch1.zip and Training_Batch2.zip.
    """

    base_card = DatasetCard(
        name="lits",
        media="volume",
        title="LiTS: liver tumor segmentation",
        modality="ct",
        url="https://competitions.codalab.org/competitions/17094",
        licence="unknown",
        commercial_use=None,
        weights_may_be_published=False,
        citation="Bilic et al., The Liver Tumor Segmentation Benchmark (LiTS), Medical Image Analysis 84, 2023, "
        "arXiv:1901.04056",
        targets=target_of(_LABELS),
        input=InputSpec(("ct",), None, "RAS", Intensity("window", SOFT_TISSUE_HU)),
    )
    label_values = _LABELS
    holds = "volume-0.nii, segmentation-0.nii and their like"

    def found(self) -> list[Files]:
        """The volumes by number, each with the segmentation of its number, wherever that lies."""
        volumes, masks = self._numbered("volume"), self._numbered("segmentation")
        return [
            Files(f"volume-{n}", (path,), ((masks.get(n, path.replace("volume-", "segmentation-")), None),))
            for n, path in sorted(volumes.items())
        ]

    def _numbered(self, word: str) -> dict[int, str]:
        pattern = re.compile(rf"{word}-([0-9]+)\.nii(\.gz)?")
        found: dict[int, str] = {}
        for path in visible(self.root, f"**/{word}-*.nii*"):
            if match := pattern.fullmatch(path.name):
                place = str(path.relative_to(self.root))
                if (other := found.setdefault(int(match[1]), place)) != place:
                    raise InputError(f"lits: {self.root} holds {other} and {place}, which are one; keep one")
        return found

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write four cases in two batches; some livers have no tumour."""
        from inflate3d.data.raw.examples import boxes, write_image, write_mask

        for number in range(4):
            mask = boxes((1, 2) if number % 2 else (1, 1))
            folder = root / f"Training Batch {1 + number // 2}"
            write_image(folder / f"volume-{number}.nii", mask, seed=number)
            write_mask(folder / f"segmentation-{number}.nii", mask)
        return {"root": str(root), "val_count": 1}
