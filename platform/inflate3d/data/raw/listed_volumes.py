"""Volumes that rows name, whoever wrote the rows: a label, a mask, numbers, or nothing at all for each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from inflate3d.data.raw.files import as_names
from inflate3d.data.raw.keys import case_keys, file_names
from inflate3d.data.raw.noticed import Noticed
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.data.raw.tables import Row
from inflate3d.data.raw.volumes import as_spacing, as_window, measure_window, read_volume_case
from inflate3d.errors import InputError, unknown_name
from inflate3d.targets import ClassTarget, MaskTarget, ValueTarget

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
COLUMNS = ("image", "label", "mask", "split", "group", "key")


def is_numeric(rows: Sequence[Row], column: str) -> bool:
    """Whether a column holds numbers and empty cells alone, and one number at least."""
    told = [row[column] for row in rows if row.get(column)]
    return bool(told) and all(_NUMBER.fullmatch(text) for text in told)


@dataclass(frozen=True)
class Said:
    """What people say of volumes that lie on their own disk, since no file states it."""

    name: str
    url: str = ""
    licence: str = "unknown"
    citation: str = ""
    commercial_use: bool | None = None
    weights_may_be_published: bool = False


class ListedVolumes(AbstractDataset):
    """Rows with `image` (paths below root, channels separated by ';'), and perhaps `label`, `mask`, columns of numbers,
    `split`, `group`, `key`, and `frame` (of a 4-D file, from 0). file: where the rows come from, for messages.
    """

    def __init__(
        self,
        root: Path,
        rows: Sequence[Row],
        *,
        file: Path,
        said: Said,
        modality: str,
        classes: str | Sequence[str] | None,
        units: dict[str, str],
        channels: str | Sequence[str] | None,
        orientation: str | None,
        spacing_mm: Sequence[float] | None,
        window: Sequence[float] | None,
        rule: SplitRule,
    ) -> None:
        self.where = type(self).base_card.name
        self.root, self.file, self._rows, self._units = root, file, list(rows), units
        self._has = {column for column in ("label", "mask") if any(row.get(column) for row in self._rows)}
        self._classes = as_names(classes)
        self._check_images()
        self._check_masks()
        self._channels = as_names(channels)
        self._modality = modality
        self._orientation = orientation
        self._spacing_mm = as_spacing(spacing_mm, where=self.where)
        self._window = as_window(window, where=self.where)
        self._rule = rule
        self._said = said

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
        return [
            Case(k, splits[k], (r["image"], r.get("mask"), self._targets(r), r.get("frame")), g) for k, r, g in rows
        ]

    def read(self, case: Case) -> RawSample:
        """Read the channels, and the mask if there is one."""
        image, mask, targets, frame = case.source
        images = [self.root / p.strip() for p in image.split(";")]
        masks = {"mask": self.root / mask} if mask else {}
        sample = read_volume_case(
            images,
            self._card_without_window,
            where=case.key,
            masks=masks,
            targets=targets,
            frame=None if frame is None else int(frame),
        )
        unknown = [name for name, value in targets.items() if value is None]
        facts = (Noticed("unlabelled", f"{', '.join(unknown)} not stated"),) if unknown else ()
        return replace(sample, noticed=(*sample.noticed, *facts))

    def _names(self) -> list[str]:
        """Return the stated key of each row, else the name of its first file. InputError for a row that is doubled."""
        unnamed = [row for row in self._rows if not row.get("key")]
        own = iter(file_names([row["image"].split(";")[0] for row in unnamed]))
        names = [row.get("key") or next(own) for row in self._rows]
        first: dict[str, Row] = {}
        for name, row in zip(names, self._rows, strict=True):
            if (other := first.setdefault(name, row)) is not row:
                lines = f"lines {other.line} and {row.line}" if other.line and row.line else "and the folder's files"
                raise InputError(
                    f"{self.file} {lines} are both the case {name!r}, {other['image']} and {row['image']}; "
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
            title=self._title,
            modality=self._modality,
            targets=self._card_targets(),
            input=InputSpec(channels, self._spacing_mm, orientation, Intensity("zscore")),
            **vars(self._said),
        )

    @property
    def _title(self) -> str:
        return f"Volumes of {self.file.name}"

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
