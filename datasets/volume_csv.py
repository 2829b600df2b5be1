"""Your own volumes, listed in a CSV: a label, a mask, numbers, or nothing at all for each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from inflate3d.contracts import (
    SPLITS,
    AbstractDataset,
    AbstractTarget,
    Case,
    DatasetCard,
    InputSpec,
    Intensity,
    RawSample,
)
from inflate3d.data.raw.files import as_names, require_file, require_folder
from inflate3d.data.raw.keys import case_keys, file_names
from inflate3d.data.raw.noticed import Noticed
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.data.raw.tables import Row, read_table
from inflate3d.data.raw.volumes import as_spacing, as_window, measure_window, read_volume_case
from inflate3d.errors import InputError, unknown_name
from inflate3d.targets import ClassTarget, MaskTarget, ValueTarget

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_COLUMNS = ("image", "label", "mask", "split", "group", "key")


class VolumeCSV(AbstractDataset):
    """A CSV with a header: `image`, perhaps `label`, `mask` and columns of numbers, and `split` (train, val, test),
    `group`, `key`.

    image: a path relative to root (.nii.gz, .nrrd, .mha, .npy, or a folder with a DICOM series); several channels are
    separated by ';'. label: a class name; `classes` gives their order. mask: a path to a label map in every row; then
    `classes` names its labels, background first. values: columns of numbers with their units, "age:years,score".
    An empty cell means that the label or number is unknown; a table without any is unlabelled. A column of groups
    (patients) keeps each in one split. key: else the file's name, with its folders where names repeat. encoding: of the
    CSV, where it is neither UTF-8 nor marked. modality chooses the stem: ct, mri, mask, ...
    Intensities: `window` if given; else ct uses 0.5 to 99.5 % of the values of up to 20 training volumes, mask 0 to 1,
    all others a z-score.
    """

    base_card = DatasetCard(
        name="volume_csv",
        media="volume",
        title="Volumes listed in a CSV",
        modality="as you state",
        url="",
        licence="unknown",
        commercial_use=None,
        weights_may_be_published=False,
        citation="",
        input=InputSpec(orientation="RAS"),
    )

    def __init__(
        self,
        root: str | Path,
        *,
        modality: str,
        csv: str = "cases.csv",
        encoding: str | None = None,
        classes: str | Sequence[str] | None = None,
        values: str | Sequence[str] | None = None,
        channels: str | Sequence[str] | None = None,
        orientation: str | None = "RAS",
        spacing_mm: Sequence[float] | None = None,
        window: Sequence[float] | None = None,
        val_fraction: float = 0.2,
        val_count: int | None = None,
        split_file: str | None = None,
        seed: int = 0,
        name: str | None = None,
        url: str = "",
        licence: str = "unknown",
        citation: str = "",
        commercial_use: bool | None = None,
        weights_may_be_published: bool = False,
    ) -> None:
        self.root = require_folder(root, where="volume_csv", holds=csv)
        self.file = require_file(self.root / csv, where="volume_csv", holds="a CSV with the column image")
        self._units = {n: unit for n, _, unit in (entry.partition(":") for entry in as_names(values))}
        columns = (*_COLUMNS, *self._units)
        self._rows = read_table(self.file, required=("image", *self._units), allowed=columns, encoding=encoding)
        self._has = {column for column in ("label", "mask") if any(row.get(column) for row in self._rows)}
        self._classes = as_names(classes)
        self._check_images()
        self._check_masks()
        self._channels = as_names(channels)
        self._modality = modality
        self._orientation = orientation
        self._spacing_mm = as_spacing(spacing_mm, where="volume_csv")
        self._window = as_window(window, where="volume_csv")
        self._rule = SplitRule(val_fraction, val_count, split_file, seed)
        self._said: dict[str, Any] = {
            "name": name or self.root.name,
            "url": url,
            "licence": licence,
            "citation": citation,
            "commercial_use": commercial_use,
            "weights_may_be_published": weights_may_be_published,
        }

    @property
    def card(self) -> DatasetCard:
        """The card; reads up to 20 training cases, once, if it has to measure a CT window."""
        return self._card

    @cached_property
    def _card(self) -> DatasetCard:
        window = self._window
        if self._modality == "ct" and window is None:
            window = measure_window(self, self._card_without_window)
        elif self._modality == "mask" and window is None:
            window = (0.0, 1.0)
        card = self._card_without_window
        return replace(card, input=replace(card.input, intensity=Intensity("window", window))) if window else card

    def cases(self) -> list[Case]:
        """Every row, in the CSV's order; splits from the column `split`, else from SplitRule."""
        keys = case_keys(self._names(), where=self.file.name)
        groups = [r.get("group") or None for r in self._rows]
        labels = [self._label_names.index(r["label"]) if r.get("label") else -1 for r in self._rows]
        if any(r.get("split") for r in self._rows):
            splits = {key: self._stated_split(row) for key, row in zip(keys, self._rows, strict=True)}
        else:
            splits = self._rule.assign(keys, groups=[g or k for g, k in zip(groups, keys, strict=True)], labels=labels)
        rows = zip(keys, self._rows, groups, strict=True)
        return [Case(k, splits[k], (r["image"], r.get("mask"), self._targets(r)), g) for k, r, g in rows]

    def read(self, case: Case) -> RawSample:
        """Read the channels, and the mask if there is one."""
        image, mask, targets = case.source
        images = [self.root / p.strip() for p in image.split(";")]
        masks = {"mask": self.root / mask} if mask else {}
        sample = read_volume_case(images, self._card_without_window, where=case.key, masks=masks, targets=targets)
        unknown = [name for name, value in targets.items() if value is None]
        facts = (Noticed("unlabelled", f"{', '.join(unknown)} not stated"),) if unknown else ()
        return replace(sample, noticed=(*sample.noticed, *facts))

    def _names(self) -> list[str]:
        """Return the stated key of each row, else the name of its first file. InputError for a row that is doubled."""
        unnamed = [row for row in self._rows if not row.get("key")]
        by_line = {
            row.line: name
            for row, name in zip(unnamed, file_names([r["image"].split(";")[0] for r in unnamed]), strict=True)
        }
        names = [row.get("key") or by_line[row.line] for row in self._rows]
        first: dict[str, Row] = {}
        for name, row in zip(names, self._rows, strict=True):
            if (other := first.setdefault(name, row)) is not row:
                raise InputError(
                    f"{self.file} lines {other.line} and {row.line} are both the case {name!r}; "
                    "remove one, or tell them apart in the column key"
                )
        return names

    def _targets(self, row: Row) -> dict[str, Any]:
        """Return the values of a row besides its mask; None for an empty cell."""
        label = {"label": row["label"] or None} if "label" in self._has else {}
        return {**label, **{name: self._number(row, name) for name in self._units}}

    def _number(self, row: Row, name: str) -> float | None:
        if not row[name]:
            return None
        if not _NUMBER.fullmatch(row[name]):
            raise InputError(
                f"{self.file} line {row.line}, {row['image']}: {name} is {row[name]!r}; expected a number such as 1.5, "
                "or an empty cell where it is not known"
            )
        return float(row[name])

    @cached_property
    def _card_without_window(self) -> DatasetCard:
        paths = self._rows[0]["image"].split(";")
        channels = self._channels or tuple(
            f"{self._modality}_{i}" if len(paths) > 1 else self._modality for i in range(len(paths))
        )
        # A .npy has no anatomy.
        orientation = None if all(r["image"].endswith(".npy") for r in self._rows) else self._orientation
        return replace(
            self.base_card,
            title=f"Volumes of {self.file.name}",
            modality=self._modality,
            targets=self._card_targets(),
            input=InputSpec(channels, self._spacing_mm, orientation, Intensity("zscore")),
            **self._said,
        )

    def _card_targets(self) -> dict[str, AbstractTarget]:
        targets: dict[str, AbstractTarget] = {}
        if "label" in self._has:
            targets["label"] = ClassTarget(self._label_names)
        if "mask" in self._has:
            targets["mask"] = MaskTarget(self._classes)
        return targets | {name: ValueTarget(unit) for name, unit in self._units.items()}

    @cached_property
    def _label_names(self) -> tuple[str, ...]:
        """The classes of the column `label`: as given, unless they belong to a mask; else those found, sorted."""
        found = {row["label"] for row in self._rows if row.get("label")}
        if not self._classes or "mask" in self._has:
            return tuple(sorted(found, key=lambda n: (0, int(n), n) if n.isdigit() else (1, 0, n)))
        if strange := sorted(found - set(self._classes)):
            row = next(row for row in self._rows if row.get("label") == strange[0])
            where = f"{self.file} line {row.line}, {row['image']}"
            raise unknown_name("class", strange[0], self._classes, where=where)
        return self._classes

    def _check_images(self) -> None:
        for row in self._rows:
            if not row["image"]:
                raise InputError(f"{self.file} line {row.line}: no image; give its path, or remove the line")
            if not all(part.strip() for part in row["image"].split(";")):
                raise InputError(
                    f"{self.file} line {row.line}: {row['image']!r} holds an empty path; write channels as a.nii;b.nii"
                )

    def _check_masks(self) -> None:
        if "mask" not in self._has:
            return
        if empty := [row for row in self._rows if not row.get("mask")]:
            raise InputError(
                f"{self.file} line {empty[0].line}: no mask for {empty[0]['image']}; "
                "fill the column in every row, or leave it out"
            )
        if not self._classes:
            raise InputError(f"{self.file}: the labels of masks need names; give classes: background,liver,...")

    def _stated_split(self, row: Row) -> Any:
        if (split := row.get("split", "")) not in SPLITS:
            raise unknown_name("split", split, SPLITS, where=f"{self.file} line {row.line}, {row['image']}")
        return split

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write eight CT-like volumes of 10x12x14, dark or bright in the middle, of four patients, and cases.csv."""
        import numpy as np
        from inflate3d.data.raw.readers import write_nifti

        (root / "images").mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(0)
        lines = ["image,label,group"]
        for i in range(8):
            image = generator.normal(0, 20, (10, 12, 14))
            image[3:7, 4:8, 4:10] += 300 if i % 2 else -300
            affine = np.diag([1.5, 1.5, 2.5, 1.0])
            write_nifti(root / "images" / f"scan_{i}.nii.gz", image.astype(np.int16), affine)
            lines.append(f"images/scan_{i}.nii.gz,{'bright' if i % 2 else 'dark'},patient_{i // 2}")
        (root / "cases.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {"root": str(root), "modality": "ct", "val_fraction": 0.25}
