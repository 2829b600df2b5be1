"""A folder of NIfTI volumes without any labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from inflate3d.contracts import AbstractDataset, Case, DatasetCard, InputSpec, Intensity, RawSample
from inflate3d.data.raw.files import require_folder, stem
from inflate3d.data.raw.keys import case_keys
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.data.raw.volumes import read_volume_case
from inflate3d.errors import InputError


class ScanFolder(AbstractDataset):
    """root/*.nii.gz, each one volume; intensities by each volume's own mean and standard deviation."""

    base_card = DatasetCard(
        name="scan_folder",
        media="volume",
        title="NIfTI volumes without labels",
        modality="mri",
        url="",
        licence="unknown",
        commercial_use=None,
        weights_may_be_published=False,
        citation="",
        input=InputSpec(("mri",), None, "RAS", Intensity("zscore")),
    )

    def __init__(self, root: str | Path, *, val_fraction: float = 0.2) -> None:
        self.root = require_folder(root, where="scan_folder", holds="files that end in .nii.gz")
        self._rule = SplitRule(val_fraction)
        self._files = sorted(self.root.glob("*.nii.gz"))
        if not self._files:
            raise InputError(f"scan_folder: {self.root} holds no file that ends in .nii.gz")

    @property
    def card(self) -> DatasetCard:
        """The card under the folder's name."""
        return replace(self.base_card, name=self.root.name)

    def cases(self) -> list[Case]:
        """Every file, by name."""
        keys = case_keys([stem(file) for file in self._files], where="scan_folder")
        splits = self._rule.assign(keys)
        return [Case(key, splits[key], file.name) for key, file in zip(keys, self._files, strict=True)]

    def read(self, case: Case) -> RawSample:
        """Read the volume; nothing is known of it."""
        return read_volume_case([self.root / case.source], self.card, where=case.key)

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write ten volumes of 24x24x24 with a bright ball each."""
        import numpy as np
        from inflate3d.data.raw.readers import write_nifti

        root.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(0)
        places = np.indices((24, 24, 24))
        for i in range(10):
            middle = generator.integers(8, 16, 3)[:, None, None, None]
            ball = ((places - middle) ** 2).sum(0) < 36
            write_nifti(root / f"scan_{i}.nii.gz", (generator.normal(0, 5, ball.shape) + 100 * ball).astype(np.int16))
        return {"root": str(root)}
