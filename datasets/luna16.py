"""LUNA16: lung nodules and what looks like them, as crops about 754,975 candidates in 888 CT of LIDC-IDRI."""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from inflate3d.contracts import AbstractDataset, Case, DatasetCard, InputSpec, Intensity, RawSample
from inflate3d.data.raw.files import require_file, require_folder, visible
from inflate3d.data.raw.keys import case_keys
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.data.raw.tables import Row, read_table
from inflate3d.errors import InputError
from inflate3d.targets import ClassTarget

_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "class")
_AIR_HU = -1024
_CLASSES = ("no nodule", "nodule")


class Candidate(NamedTuple):
    """A place in a scan. position_mm: (x, y, z) in the LPS millimetres of the table."""

    scan: str
    position_mm: tuple[float, float, float]
    label: int


class LUNA16(AbstractDataset):
    """subset0 to subset9 with SERIES.mhd and SERIES.raw (or .zraw), and candidates_V2.csv, below root.

    Each case is a cube of size_mm about a candidate at 1 mm; voxels beyond the scan are -1024 HU. negatives_per_scan:
    how many candidates without a nodule are taken of a scan, drawn by `seed`; None takes all. val_subset: the fold that
    becomes val; None lets SplitRule take whole scans. skip_missing: leave out candidates whose scan is not there.
    Download: wget https://zenodo.org/records/3723295/files/subset{0..6}.zip
    https://zenodo.org/records/4121926/files/subset{7..9}.zip https://zenodo.org/records/3723295/files/candidates_V2.zip
    """

    base_card = DatasetCard(
        name="luna16",
        media="volume",
        title="LUNA16: lung nodule candidates, false positive reduction",
        modality="ct",
        url="https://luna16.grand-challenge.org",
        licence="CC-BY-4.0",
        commercial_use=True,
        weights_may_be_published=True,
        citation="Setio et al., Validation, comparison, and combination of algorithms for automatic detection of "
        "pulmonary nodules in computed tomography images: the LUNA16 challenge, Medical Image Analysis 42, 2017, "
        "arXiv:1612.08012; Armato et al., LIDC-IDRI, Medical Physics 38, 2011",
        targets={"label": ClassTarget(_CLASSES)},
        input=InputSpec(("ct",), (1.0, 1.0, 1.0), "RAS", Intensity("window", (-1000.0, 400.0))),
    )

    def __init__(
        self,
        root: str | Path,
        *,
        size_mm: int = 48,
        negatives_per_scan: int | None = 10,
        val_subset: int | None = None,
        skip_missing: bool = False,
        val_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        from inflate3d.data.raw.cubes import Scans

        self.root = require_folder(root, where="luna16", holds="subset0 to subset9 and candidates_V2.csv")
        if size_mm < 1 or (negatives_per_scan is not None and negatives_per_scan < 0):
            raise InputError(
                f"luna16: size_mm {size_mm}, negatives_per_scan {negatives_per_scan}; give 1 and 0 or more"
            )
        tables = visible(self.root, "**/candidates_V2.csv")
        self.file = require_file(
            tables[0] if tables else self.root / "candidates_V2.csv", where="luna16", holds="the candidates"
        )
        self._size, self._negatives, self._subset = size_mm, negatives_per_scan, val_subset
        self._skip_missing, self._seed = skip_missing, seed
        self._rule = SplitRule(val_fraction, seed=seed)
        self._kept = Scans()

    @property
    def card(self) -> DatasetCard:
        """The card: the same for every copy."""
        return self.base_card

    def cases(self) -> list[Case]:
        """The candidates, scan by scan, in the table's order."""
        chosen = self._chosen
        if self._skip_missing:
            chosen = [c for c in chosen if c.scan in self._scans]
            told = "luna16: %d of %d candidates are of scans that are not there and are left out"
            if absent := len(self._chosen) - len(chosen):
                logging.getLogger(__name__).warning(told, absent, len(self._chosen))
        counts: Counter[str] = Counter()
        names = []
        for candidate in chosen:
            names.append(f"{candidate.scan}_{counts[candidate.scan]:05d}")
            counts[candidate.scan] += 1
        keys = case_keys(names, where="luna16")
        in_val = self._in_val(chosen)
        return [Case(k, "val" if c.scan in in_val else "train", c, c.scan) for k, c in zip(keys, chosen, strict=True)]

    def read(self, case: Case) -> RawSample:
        """Cut the cube (1, size_mm, size_mm, size_mm) at 1 mm, the voxel nearest to the candidate in its middle."""
        from inflate3d.data.raw.cubes import cube_about

        candidate: Candidate = case.source
        if candidate.scan not in self._scans:
            raise InputError(f"{case.key}: no {candidate.scan}.mhd below {self.root}; complete the subsets")
        scan, where = self._kept.read(self._scans[candidate.scan]), self._scans[candidate.scan]
        middle = cube_about(scan, candidate.position_mm, self._size, beyond=_AIR_HU, where=f"{where}, {case.key}")
        return RawSample(
            image=middle.array,
            targets={"label": candidate.label},
            spacing_mm=middle.spacing_mm,
            affine=middle.affine,
            noticed=middle.noticed,
        )

    @cached_property
    def _scans(self) -> dict[str, Path]:
        return {path.stem: path for path in visible(self.root, "**/subset[0-9]/*.mhd")}

    @cached_property
    def _chosen(self) -> list[Candidate]:
        """Every nodule, and of each scan as many others as are wanted."""
        import numpy as np

        by_scan: dict[str, list[Candidate]] = defaultdict(list)
        for row in read_table(self.file, required=_COLUMNS):
            by_scan[row["seriesuid"]].append(_candidate(row, self.file))
        chosen = []
        for scan, candidates in by_scan.items():
            others = [i for i, c in enumerate(candidates) if c.label == 0]
            order = np.random.default_rng([self._seed, *scan.encode()]).permutation(len(others))
            kept = {others[i] for i in (order if self._negatives is None else order[: self._negatives])}
            chosen += [c for i, c in enumerate(candidates) if c.label == 1 or i in kept]
        return chosen

    def _in_val(self, chosen: list[Candidate]) -> set[str]:
        scans = sorted({candidate.scan for candidate in chosen})
        if self._subset is None:
            return {scan for scan, split in self._rule.assign(scans).items() if split == "val"}
        held = {
            scan for scan in scans if scan in self._scans and self._scans[scan].parent.name == f"subset{self._subset}"
        }
        if not held:
            raise InputError(f"luna16: {self.root} holds no scan of subset{self._subset}, which is to be val")
        return held

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write four scans of 40 x 40 x 20 voxels, 1 x 1 x 2 mm, with a bright ball each, and two candidates a scan."""
        import numpy as np
        import SimpleITK as sitk

        lines = [",".join(_COLUMNS)]
        for i in range(4):
            folder = root / f"subset{i // 2}"
            folder.mkdir(parents=True, exist_ok=True)
            z, y, x = np.indices((20, 40, 40))
            ball = (z * 2.0 - 20) ** 2 + (y - 24.0) ** 2 + (x - 16.0) ** 2 < 25
            image = sitk.GetImageFromArray(np.where(ball, 40, -900).astype(np.int16))
            image.SetSpacing((1.0, 1.0, 2.0))
            image.SetOrigin((-100.0, -120.0, -50.0))
            name = f"1.3.6.1.4.1.{i}"
            sitk.WriteImage(image, str(folder / f"{name}.mhd"))
            lines += [f"{name},-84.0,-96.0,-30.0,1", f"{name},-70.0,-110.0,-36.0,0"]
        (root / "candidates_V2.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {"root": str(root), "size_mm": 12, "val_fraction": 0.25}


def _candidate(row: Row, file: Path) -> Candidate:
    try:
        position = tuple(float(row[name]) for name in _COLUMNS[1:4])
    except ValueError:
        position = (math.nan,) * 3
    if not all(map(math.isfinite, position)) or row["class"] not in ("0", "1"):
        raise InputError(f"{file} line {row.line}: {list(row.values())}; expected a series, three numbers, and 0 or 1")
    return Candidate(row["seriesuid"], (position[0], position[1], position[2]), int(row["class"]))
