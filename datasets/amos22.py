"""AMOS22: 15 abdominal organs in CT and MRI of several hospitals."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from inflate3d.contracts import DatasetCard, InputSpec, Intensity, Split
from inflate3d.data.raw.files import read_json, require_file
from inflate3d.data.raw.labelled_volumes import SOFT_TISSUE_HU, Files, LabelledVolumes, Labels, numbered, target_of
from inflate3d.errors import InputError, unknown_name

_LABELS = numbered(
    *("spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta", "postcava"),
    *("pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate or uterus"),
)
_LISTS: dict[str, Split] = {"training": "train", "validation": "val"}
# Cases up to this number are CT, those above MRI.
_LAST_CT = 500
_INTENSITIES = {"ct": Intensity("window", SOFT_TISSUE_HU), "mri": Intensity("zscore")}


class AMOS22(LabelledVolumes):
    """amos22/: dataset.json, imagesTr, labelsTr, imagesVa, labelsVa, as released after the challenge.

    modality: ct (cases up to amos_0500) or mri (those above). Splits are the official ones; imagesTs has no labels and
    is not used. Download, 24 GB: wget https://zenodo.org/records/7262581/files/amos22.zip && unzip amos22.zip
    """

    base_card = DatasetCard(
        name="amos22",
        media="volume",
        title="AMOS22: abdominal multi-organ segmentation",
        modality="ct",
        url="https://zenodo.org/records/7262581",
        licence="CC-BY-4.0",
        commercial_use=True,
        weights_may_be_published=True,
        citation="Ji et al., AMOS: A Large-Scale Abdominal Multi-Organ Benchmark for Versatile Medical Image "
        "Segmentation, NeurIPS 2022, arXiv:2206.08023",
        targets=target_of(_LABELS),
        input=InputSpec(("ct",), None, "RAS", Intensity("window", SOFT_TISSUE_HU)),
    )
    label_values = _LABELS
    holds = "AMOS22's dataset.json, imagesTr, labelsTr, imagesVa and labelsVa"

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
        if modality not in _INTENSITIES:
            raise unknown_name("modality", modality, _INTENSITIES, where="amos22")
        super().__init__(root, labels=labels, spacing_mm=spacing_mm, window=window, split_file=split_file)
        self._modality = modality
        self._json = read_json(
            require_file(self.root / "dataset.json", where="amos22", holds=self.holds), where="amos22"
        )

    @property
    def card(self) -> DatasetCard:
        """The card of one modality; AMOS22's CT has a window, its MRI each volume's z-score."""
        if self._modality == "ct":
            return super().card
        spec = replace(super().card.input, channels=("mri",))
        spec = spec if self._window else replace(spec, intensity=_INTENSITIES["mri"])
        return replace(super().card, name="amos22_mri", modality="mri", input=spec)

    def found(self) -> list[Files]:
        """The cases of dataset.json that are of the modality, training first."""
        listed = [(split, entry) for part, split in _LISTS.items() for entry in self._json.get(part, ())]
        files = [self._files(entry, split) for split, entry in listed]
        return [f for f in files if (_number(f.name) <= _LAST_CT) == (self._modality == "ct")]

    def _files(self, entry: Any, split: Split) -> Files:
        if not isinstance(entry, dict) or not {"image", "label"} <= set(entry):
            raise InputError(f"amos22: dataset.json lists {entry!r}; expected image and label")
        image, label = (str(entry[key]).removeprefix("./") for key in ("image", "label"))
        return Files(Path(image).name.split(".")[0], (image,), ((label, None),), split)

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write three CT and two MRI cases with official names."""
        import json

        from inflate3d.data.raw.examples import boxes, write_image, write_mask

        lists: dict[str, list[dict[str, str]]] = {"training": [], "validation": [], "test": []}
        for number, part in ((1, "Tr"), (4, "Tr"), (8, "Va"), (507, "Tr"), (508, "Va")):
            name = f"amos_{number:04d}.nii.gz"
            mask = boxes((1, 2, 6, 15))
            write_image(root / f"images{part}" / name, mask, seed=number)
            write_mask(root / f"labels{part}" / name, mask)
            entry = {"image": f"./images{part}/{name}", "label": f"./labels{part}/{name}"}
            lists["training" if part == "Tr" else "validation"].append(entry)
        labels = {"0": "background", **{str(value): name for name, value in _LABELS.items()}}
        content = {"name": "AMOS", "modality": {"0": "CT"}, "labels": labels, **lists}
        (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
        return {"root": str(root)}


def _number(name: str) -> int:
    if (match := re.fullmatch(r"amos_([0-9]+)", name)) is None:
        raise InputError(f"amos22: dataset.json lists {name!r}; expected names such as amos_0004.nii.gz")
    return int(match[1])
