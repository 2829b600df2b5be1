"""LIDC-IDRI: lung nodules that up to four radiologists outlined and rated, in CT of 1,010 patients."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from inflate3d.contracts import AbstractDataset, Case, DatasetCard, InputSpec, Intensity, RawSample
from inflate3d.data.raw.files import require_folder, visible
from inflate3d.data.raw.keys import case_keys
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.errors import InputError
from inflate3d.targets import ClassTarget

_AIR_HU = -1024
_CLASSES = ("benign", "malignant")
_RATING = 3.0  # of 1 to 5; "indeterminate"


class Nodule(NamedTuple):
    """series: its folder. position_mm: (x, y, z), LPS. rating: the mean of its readers' malignancy, 1 to 5."""

    series: Path
    position_mm: tuple[float, float, float]
    rating: float


class LIDCIDRI(AbstractDataset):
    """LIDC-IDRI-0001 and so on below root: of each scan a folder of .dcm with the .xml of its reading sessions.

    Outlines of several readers are one nodule where their middles are within half the larger diameter. A case is a cube
    of size_mm about a nodule of 3 mm or more at 1 mm; voxels beyond the scan are -1024 HU. Its class is malignant where
    the readers' mean malignancy is above 3, and benign below; nodules of exactly 3, and of fewer readers than
    min_readers, are left out. Patients are never split. Chest radiographs in the folders are passed over.
    Download: the NBIA Data Retriever of https://www.cancerimagingarchive.net/collection/lidc-idri, 125 GB.
    """

    base_card = DatasetCard(
        name="lidc_idri",
        media="volume",
        title="LIDC-IDRI: lung nodules, benign or malignant by their readers",
        modality="ct",
        url="https://www.cancerimagingarchive.net/collection/lidc-idri",
        licence="CC-BY-3.0",
        commercial_use=True,
        weights_may_be_published=True,
        citation="Armato et al., The Lung Image Database Consortium (LIDC) and Image Database Resource Initiative "
        "(IDRI), Medical Physics 38, 2011",
        targets={"label": ClassTarget(_CLASSES)},
        input=InputSpec(("ct",), (1.0, 1.0, 1.0), "RAS", Intensity("window", (-1000.0, 400.0))),
    )

    def __init__(
        self, root: str | Path, *, size_mm: int = 48, min_readers: int = 3, val_fraction: float = 0.2, seed: int = 0
    ) -> None:
        from inflate3d.data.raw.cubes import Scans

        self.root = require_folder(root, where="lidc_idri", holds="LIDC-IDRI-0001, ...")
        if size_mm < 1 or not 1 <= min_readers <= 4:
            raise InputError(f"lidc_idri: size_mm {size_mm}, min_readers {min_readers}; give 1 or more, and 1 to 4")
        self._size, self._min_readers = size_mm, min_readers
        self._rule = SplitRule(val_fraction, seed=seed)
        self._kept = Scans()

    @property
    def card(self) -> DatasetCard:
        """The card: the same for every copy."""
        return self.base_card

    def cases(self) -> list[Case]:
        """The nodules, patient by patient, along each scan: LIDC-IDRI-0001_0, ..."""
        nodules = self._nodules
        patients = [nodule.series.relative_to(self.root).parts[0] for nodule in nodules]
        counts: Counter[str] = Counter()
        names = []
        for patient in patients:
            names.append(f"{patient}_{counts[patient]}")
            counts[patient] += 1
        keys = case_keys(names, where="lidc_idri")
        splits = self._rule.assign(keys, groups=patients, labels=[int(n.rating > _RATING) for n in nodules])
        return [Case(key, splits[key], n, p) for key, n, p in zip(keys, nodules, patients, strict=True)]

    def read(self, case: Case) -> RawSample:
        """Cut the cube (1, size_mm, size_mm, size_mm) at 1 mm, the voxel nearest to the nodule's middle in its own."""
        from inflate3d.data.raw.cubes import cube_about

        nodule: Nodule = case.source
        where = f"{nodule.series}, {case.key}"
        cube = cube_about(self._kept.read(nodule.series), nodule.position_mm, self._size, beyond=_AIR_HU, where=where)
        return RawSample(
            image=cube.array,
            targets={"label": int(nodule.rating > _RATING)},
            spacing_mm=cube.spacing_mm,
            affine=cube.affine,
            noticed=cube.noticed,
        )

    @cached_property
    def _nodules(self) -> list[Nodule]:
        import numpy as np
        from inflate3d.data.raw.lidc_readings import in_millimetres, nodules, read_sessions

        found: list[Nodule] = []
        files = sorted(visible(self.root, "LIDC-IDRI-*/**/*.xml"))
        if not files:
            raise InputError(f"lidc_idri: {self.root} holds no LIDC-IDRI-*/**/*.xml; give the folder of the patients")
        for file in files:
            if not (outlines := read_sessions(file)):
                continue
            for together in nodules(in_millimetres(outlines, file.parent)):
                readers = {outline.reader for outline in together}
                rating = sum(o.malignancy for o in together) / len(together)
                if len(readers) >= self._min_readers and rating != _RATING:
                    x, y, z = (float(v) for v in np.mean([o.middle_mm for o in together], axis=0))
                    found.append(Nodule(file.parent, (x, y, z), rating))
        return found

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write four patients with a scan of 40 x 40 x 16 voxels, 1 x 1 x 2 mm, and a nodule by three readers."""
        from inflate3d.data.raw.lidc_readings import write_example_scan

        for number in range(4):
            write_example_scan(root / f"LIDC-IDRI-{number + 1:04d}" / "study" / "series", number)
        return {"root": str(root), "size_mm": 12, "val_fraction": 0.5}
