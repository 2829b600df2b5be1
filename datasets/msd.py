"""Medical Segmentation Decathlon: any of its ten task folders (Task01_BrainTumour ... Task10_Colon)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from inflate3d.contracts import AbstractDataset, Case, DatasetCard, InputSpec, Intensity, RawSample
from inflate3d.data.raw.files import read_json, require_file, require_folder
from inflate3d.data.raw.keys import case_keys, file_names
from inflate3d.data.raw.labelled_volumes import Labels
from inflate3d.data.raw.labels import MaskFile, chosen
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.data.raw.stated_labels import stated_labels
from inflate3d.data.raw.volumes import as_spacing, as_window, read_volume_case
from inflate3d.errors import InputError

# Customary display windows in Hounsfield units: air to bone where lungs are the subject, else soft tissue.
_LUNG_HU = (-1000.0, 400.0)
_SOFT_TISSUE_HU = (-175.0, 250.0)


class MSD(AbstractDataset):
    """One task folder: dataset.json, imagesTr/, labelsTr/. The test images have no labels and are not used.

    root: the task folder itself, or its parent with `task`, the folder's name. spacing_mm (z, y, x): resample to it;
    None keeps each volume's own. window: intensities are clipped to it and scaled, for CT in HU; None uses a lung
    window for CT in Task06, a soft-tissue window in the others, and each volume's z-score for MRI. labels: classes made
    of the task's labels, such as {liver: [1, 2]}; the others become background. Splits: SplitRule
    divides the labelled cases (val_count overrides val_fraction; split_file overrides both).
    Download: from http://medicaldecathlon.com, or aws s3 cp --no-sign-request s3://msd-for-monai/Task09_Spleen.tar .
    """

    base_card = DatasetCard(
        name="msd",
        media="volume",
        title="Medical Segmentation Decathlon",
        modality="ct or mri",
        url="http://medicaldecathlon.com",
        licence="CC-BY-SA-4.0",
        commercial_use=True,
        weights_may_be_published=True,
        citation="Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13:4128, 2022, "
        "doi:10.1038/s41467-022-30695-9; Simpson et al., arXiv:1902.09063",
        input=InputSpec(orientation="RAS"),
    )

    def __init__(
        self,
        root: str | Path,
        *,
        task: str | None = None,
        labels: Labels | None = None,
        spacing_mm: Sequence[float] | None = None,
        window: Sequence[float] | None = None,
        val_fraction: float = 0.2,
        val_count: int | None = None,
        split_file: str | None = None,
        seed: int = 0,
    ) -> None:
        self.root = require_folder(root, where="msd", holds="dataset.json, imagesTr and labelsTr")
        if task is not None:
            self.root = require_folder(self.root / task, where="msd", holds=f"the decathlon's {task}")
        self.where = f"msd {self.root.name}"
        file = require_file(
            self.root / "dataset.json", where=self.where, holds="the decathlon's dataset.json (or give `task`)"
        )
        self._json = read_json(file, where=self.where)
        if absent := [k for k in ("modality", "labels", "training") if k not in self._json]:
            raise InputError(f"{file}: no {absent[0]!r}; a decathlon task has modality, labels and training")
        self._rule = SplitRule(val_fraction, val_count, split_file, seed)
        self._spacing_mm = as_spacing(spacing_mm, where=self.where)
        self._window = as_window(window, where=self.where)
        self._labels = chosen(stated_labels(self._json["labels"], where=str(file)), labels, where=self.where)

    @property
    def card(self) -> DatasetCard:
        """The card with the task's own channels, classes and modality."""
        modalities = self._json["modality"]
        channels = tuple(str(modalities[k]).strip().lower() for k in sorted(modalities, key=int))
        is_ct = all(c == "ct" for c in channels)
        window_hu = _LUNG_HU if "lung" in self._task else _SOFT_TISSUE_HU
        window = self._window or (window_hu if is_ct else None)
        intensity = Intensity("window", window) if window else Intensity("zscore")
        return replace(
            self.base_card,
            name=f"msd_{self._task}",
            title=f"Medical Segmentation Decathlon: {self._json.get('name', self.root.name)}",
            modality="ct" if is_ct else "mri",
            targets={"mask": self._labels.target},
            input=InputSpec(channels, self._spacing_mm, "RAS", intensity),
        )

    def cases(self) -> list[Case]:
        """The labelled cases, sorted by name."""
        pairs = sorted((self._path(e, "image"), self._path(e, "label")) for e in self._json["training"])
        keys = case_keys(file_names([image for image, _ in pairs]), where=self.where)
        splits = self._rule.assign(keys)
        return [Case(key, splits[key], pair) for key, pair in zip(keys, pairs, strict=True)]

    def read(self, case: Case) -> RawSample:
        """Read image and mask, both turned to RAS and, if stated, resampled to the spacing."""
        image, mask = (self.root / p for p in case.source)
        masks = {"mask": [MaskFile(mask, self._labels.index_of)]}
        return read_volume_case([image], self.card, where=case.key, masks=masks)

    @property
    def _task(self) -> str:
        return self.root.name.partition("_")[2].lower() or self.root.name.lower()

    def _path(self, entry: Any, key: str) -> str:
        if not isinstance(entry, dict) or key not in entry:
            raise InputError(f"{self.where}: dataset.json lists {entry!r} for training; expected image and label")
        return str(entry[key]).removeprefix("./")

    @classmethod
    def recognise(cls, root: Path) -> dict[str, Any] | None:
        """A dataset.json that lists its `training`, beside imagesTr whose files do not end in _0000."""
        file = root / "dataset.json"
        if not file.is_file() or any(root.glob("imagesTr/*_0000.*")):
            return None
        return {"root": str(root)} if "training" in read_json(file, where="msd") else None

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write Task99_Toy: six 2 mm MRI-like volumes of 12x14x16 with a bright box each."""
        import json

        import numpy as np
        from inflate3d.data.raw.readers import write_nifti

        folder = root / "Task99_Toy"
        for name in ("imagesTr", "labelsTr"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(0)
        training = []
        for i in range(6):
            mask = np.zeros((12, 14, 16), np.uint8)
            mask[3:8, 4 : 9 + i % 3, 5:12] = 1
            image = (generator.normal(100, 10, mask.shape) + 80 * mask).astype(np.int16)
            affine = np.diag([2.0, 2.0, 2.0, 1.0])
            for sub, array in (("imagesTr", image), ("labelsTr", mask)):
                write_nifti(folder / sub / f"toy_{i:03d}.nii.gz", array, affine)
            training.append({k: f"./{s}/toy_{i:03d}.nii.gz" for k, s in (("image", "imagesTr"), ("label", "labelsTr"))})
        content = {
            "name": "Toy",
            "modality": {"0": "MRI"},
            "labels": {"0": "background", "1": "box"},
            "training": training,
        }
        (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
        return {"root": str(root), "task": "Task99_Toy", "val_count": 2}
