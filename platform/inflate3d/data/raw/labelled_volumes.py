"""A published set of volumes with masks: what every such set shares, whatever its folders look like."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from inflate3d.contracts import AbstractDataset, AbstractTarget, Case, DatasetCard, Intensity, RawSample, Split
from inflate3d.data.raw.files import require_folder
from inflate3d.data.raw.keys import case_keys
from inflate3d.data.raw.labels import LabelMap, MaskFile, label_map
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.data.raw.volumes import as_spacing, as_window, read_volume_case
from inflate3d.errors import InputError

SOFT_TISSUE_HU = (-175.0, 250.0)
"""A customary display window of abdominal CT, in Hounsfield units."""
Labels = dict[str, int | str | list[int | str]]


@dataclass(frozen=True)
class Files:
    """One case. Paths are relative to the root. split None: dealt by SplitRule. masks: (path, label or None): a file
    of one label (1 inside), or of all of them. values: of the targets beside the mask.
    """

    name: str
    images: tuple[str, ...]
    masks: tuple[tuple[str, str | None], ...]
    split: Split | None = None
    group: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


class LabelledVolumes(AbstractDataset):
    """Cases of image files and mask files under a root. A subclass says `label_values`, `holds` and `found`."""

    label_values: ClassVar[Mapping[str, int]] = {}
    """The value of each label in the mask files; 0 is the background."""
    holds: ClassVar[str] = ""
    """What the root folder holds, for messages."""

    def __init__(
        self,
        root: str | Path,
        *,
        labels: Labels | None = None,
        spacing_mm: Sequence[float] | None = None,
        window: Sequence[float] | None = None,
        val_fraction: float = 0.2,
        val_count: int | None = None,
        split_file: str | None = None,
        seed: int = 0,
    ) -> None:
        """labels: classes made of the set's labels, by value or name, such as {liver: 1, kidney: [2, left kidney]};
        by default every label is a class. Labels that no class takes become background; a class with an empty list was
        not looked for here, so that sets of unlike labels share their classes. spacing_mm (z, y, x): resample to it;
        None keeps each volume's own. window: clips CT, in HU; None takes the card's. Cases whose split is not published
        are dealt by val_fraction, val_count and seed; split_file, if given, decides for all.
        """
        self.where = self.base_card.name
        self.root = require_folder(root, where=self.where, holds=self.holds)
        self._wanted = labels
        self._rule = SplitRule(val_fraction, val_count, split_file, seed)
        self._spacing_mm = as_spacing(spacing_mm, where=self.where)
        self._window = as_window(window, where=self.where)

    @abstractmethod
    def found(self) -> list[Files]:
        """Return the cases in a stable order; none if the root holds another layout."""

    def labels(self) -> Mapping[str, int]:
        """Return the value of each label; a subclass may read it from the files."""
        return self.label_values

    def other_targets(self) -> Mapping[str, AbstractTarget]:
        """Return the targets beside the mask."""
        return {}

    @property
    def card(self) -> DatasetCard:
        """The card with the classes as `labels` asks for them."""
        spec = replace(self.base_card.input, spacing_mm=self._spacing_mm)
        if self._window is not None:
            spec = replace(spec, intensity=Intensity("window", self._window))
        targets = {"mask": self._map.target, **self.other_targets()}
        return replace(self.base_card, targets=targets, input=spec)

    def cases(self) -> list[Case]:
        """Every case with a mask, in the layout's order."""
        keys = case_keys([files.name for files in self._found], where=self.where)
        dealt = {key: f for key, f in zip(keys, self._found, strict=True) if self._rule.split_file or f.split is None}
        splits = self._rule.assign(list(dealt), groups=[f.group or key for key, f in dealt.items()]) if dealt else {}
        rows = zip(keys, self._found, strict=True)
        return [Case(key, splits.get(key) or f.split or "train", f, f.group) for key, f in rows]

    def read(self, case: Case) -> RawSample:
        """Read the channels and the mask, turned to RAS and, if stated, resampled to the spacing."""
        files: Files = case.source
        images = [self.root / path for path in files.images]
        parts = [self._mask_file(path, label) for path, label in files.masks]
        # A file of labels that no class takes changes no voxel.
        masks = {"mask": [part for part in parts if any(part.index_of.values())]}
        return read_volume_case(images, self.card, where=case.key, masks=masks, targets=files.values)

    def _mask_file(self, path: str, label: str | None) -> MaskFile:
        index_of = self._map.index_of
        if label is not None:
            index_of = {0: 0, 1: index_of[self.labels()[label]]}
        return MaskFile(self.root / path, index_of)

    @cached_property
    def _map(self) -> LabelMap:
        return label_map(self.labels(), self._wanted, where=self.where)

    @cached_property
    def _found(self) -> list[Files]:
        if not (found := self.found()):
            raise InputError(f"{self.where}: {self.root} holds no case; expected {self.holds}")
        return found


def target_of(label_values: Mapping[str, int]) -> dict[str, AbstractTarget]:
    """Return the targets of a card whose mask holds every label, in the order of their values."""
    return {"mask": label_map(label_values, None, where="card").target}


def numbered(*names: str) -> dict[str, int]:
    """Return the names with the values 1, 2, 3, ..."""
    return {name: value for value, name in enumerate(names, start=1)}
