"""nnU-Net raw folder (Dataset123_Name or v1's Task123_Name): your own segmentation cases, one file per channel."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from inflate3d.contracts import AbstractDataset, Case, DatasetCard, InputSpec, Intensity, RawSample
from inflate3d.data.raw.files import read_json, require_file, require_folder
from inflate3d.data.raw.keys import case_keys
from inflate3d.data.raw.labelled_volumes import Labels
from inflate3d.data.raw.labels import MaskFile, chosen
from inflate3d.data.raw.name_patterns import compiled, first_group
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.data.raw.stated_labels import stated_labels
from inflate3d.data.raw.volumes import as_spacing, as_window, measure_window, read_volume_case
from inflate3d.errors import InputError

_MRI_NAMES = re.compile(r"mri?|t[12].*|flair|adc|dwi|swi|pd|mra", re.IGNORECASE)


class NnunetRaw(AbstractDataset):
    """imagesTr/CASE_0000.nii.gz (one file per channel), labelsTr/CASE.nii.gz and dataset.json; v1 and v2 of the format.

    Where dataset.json lists the files under `dataset` (v2), these are the training cases. numTraining must be right.
    Cases of imagesTs that have a file in labelsTs become the test split. modality None: read from the channel names.
    Entries of several labels in dataset.json are regions, with regions_class_order, and voxels of `ignore` count for
    nothing. labels: plain classes made of its labels, such as {tumor: [1, 2]}; the others become background.
    window: CT intensities in HU; None measures them on the foreground of up to 20 training cases, as nnU-Net does.
    group_pattern: a regular expression whose first group is the patient in a case's name, so that no patient is in
    two splits. You state the licence and similar facts; until then the card says unknown and weights stay private.
    """

    base_card = DatasetCard(
        name="nnunet_raw",
        media="volume",
        title="nnU-Net raw dataset",
        modality="ct or mri",
        url="https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md",
        licence="unknown",
        commercial_use=None,
        weights_may_be_published=False,
        citation="Isensee et al., nnU-Net, Nature Methods 18, 2021, doi:10.1038/s41592-020-01008-z (the layout)",
        input=InputSpec(orientation="RAS"),
    )

    def __init__(
        self,
        root: str | Path,
        *,
        modality: str | None = None,
        labels: Labels | None = None,
        spacing_mm: Sequence[float] | None = None,
        window: Sequence[float] | None = None,
        group_pattern: str | None = None,
        val_fraction: float = 0.2,
        val_count: int | None = None,
        split_file: str | None = None,
        seed: int = 0,
        name: str | None = None,
        url: str = "",
        licence: str | None = None,
        citation: str = "",
        commercial_use: bool | None = None,
        weights_may_be_published: bool = False,
    ) -> None:
        self.root = require_folder(root, where="nnunet_raw", holds="dataset.json, imagesTr and labelsTr")
        self.where = f"nnunet_raw {self.root.name}"
        file = require_file(self.root / "dataset.json", where=self.where, holds="nnU-Net's dataset.json")
        self._json = read_json(file, where=self.where)
        if not (self._json.get("channel_names") or self._json.get("modality")) or "labels" not in self._json:
            raise InputError(f"{file}: expected 'labels' and 'channel_names' (v2) or 'modality' (v1)")
        self._ending = "." + str(self._json.get("file_ending", ".nii.gz")).lstrip(".")
        self._modality = modality
        self._group_pattern = compiled(group_pattern, option="group_pattern", where=self.where)
        self._rule = SplitRule(val_fraction, val_count, split_file, seed)
        self._spacing_mm = as_spacing(spacing_mm, where=self.where)
        self._window = as_window(window, where=self.where)
        stated = stated_labels(self._json["labels"], self._json.get("regions_class_order"), where=str(file))
        self._labels = chosen(stated, labels, where=self.where)
        self._said: dict[str, Any] = {
            "name": name or self.root.name.partition("_")[2].lower() or self.root.name.lower(),
            "url": url or str(self._json.get("reference", "")),
            "licence": licence or str(self._json.get("licence") or self._json.get("license") or "unknown"),
            "citation": citation or str(self._json.get("reference", "")),
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
        if self._is_ct and window is None:
            window = measure_window(self, self._card_without_window)
        card = self._card_without_window
        return replace(card, input=replace(card.input, intensity=Intensity("window", window))) if window else card

    def cases(self) -> list[Case]:
        """Cases of imagesTr (train, val) and the labelled ones of imagesTs (test), each sorted by name."""
        names = sorted(self._listed) if self._listed else self._names("imagesTr")
        if not names:
            raise InputError(
                f"{self.where}: imagesTr holds no *_0000{self._ending}; see file_ending in dataset.json. "
                "For names without _0000, as in the Medical Segmentation Decathlon, use the dataset MSD"
            )
        self._check_whole(names)
        # A link to a label that is not there is a case that cannot be read, not one less.
        tests = [n for n in self._names("imagesTs") if os.path.lexists(self.root / "labelsTs" / f"{n}{self._ending}")]
        keys = case_keys(names + tests, where=self.where)
        groups = [self._group(n) for n in names]
        splits = self._rule.assign(keys[: len(names)], groups=[g or k for g, k in zip(groups, keys, strict=False)])
        train = [Case(k, splits[k], ("Tr", n), g) for k, n, g in zip(keys, names, groups, strict=False)]
        return train + [Case(k, "test", ("Ts", n)) for k, n in zip(keys[len(names) :], tests, strict=True)]

    def read(self, case: Case) -> RawSample:
        """Read the channels and the mask, turned to RAS and, if stated, resampled to the spacing."""
        part, name = case.source
        card = self._card_without_window
        files = [f"images{part}/{name}_{i:04d}{self._ending}" for i in range(len(card.input.channels))]
        mask = f"labels{part}/{name}{self._ending}"
        if part == "Tr" and self._listed:
            files, mask = self._listed[name]
        images = [self.root / file for file in files]
        masks = {"mask": [MaskFile(self.root / mask, self._labels.index_of)]}
        return read_volume_case(images, card, where=case.key, masks=masks)

    @cached_property
    def _listed(self) -> dict[str, tuple[list[str], str]]:
        """The files of each training case, where dataset.json lists them (`dataset`, nnU-Net v2): images and label."""
        found: dict[str, tuple[list[str], str]] = {}
        for name, entry in (self._json.get("dataset") or {}).items():
            if not isinstance(entry, dict) or not isinstance(entry.get("images"), list) or "label" not in entry:
                raise InputError(f"{self.where}: dataset.json lists {name!r} as {entry!r}; expected images and label")
            found[name] = ([str(file) for file in entry["images"]], str(entry["label"]))
        return found

    def _check_whole(self, names: Sequence[str]) -> None:
        """Refuse a folder that holds fewer or other files than dataset.json says."""
        stated = self._json.get("numTraining")
        if isinstance(stated, int) and stated != len(names):
            raise InputError(
                f"{self.where}: dataset.json states numTraining {stated}, but there are {len(names)} training cases; "
                "complete the folder, or correct the number"
            )
        images = set() if self._listed else {p.name for p in self._shown("imagesTr")}
        for name in names if images else ():
            if (more := f"{name}_{len(self._channels):04d}{self._ending}") in images:
                raise InputError(
                    f"{self.where}: imagesTr holds {more}, but dataset.json names {len(self._channels)} channels; "
                    "name them all, or remove the file"
                )
        labels = [p.name.removesuffix(self._ending) for p in self._shown("labelsTr")]
        if images and (alone := sorted(set(labels) - set(names))):
            raise InputError(f"{self.where}: labelsTr holds {alone[0]!r}, imagesTr does not; complete the folder")

    @cached_property
    def _card_without_window(self) -> DatasetCard:
        spec = InputSpec(self._channels, self._spacing_mm, "RAS", Intensity("zscore"))
        targets = {"mask": self._labels.target}
        modality = self._modality or ("ct" if self._is_ct else "mri")
        title = f"nnU-Net raw dataset {self.root.name}"
        return replace(self.base_card, title=title, modality=modality, targets=targets, input=spec, **self._said)

    @cached_property
    def _channels(self) -> tuple[str, ...]:
        table = self._json.get("channel_names") or self._json["modality"]
        return tuple(str(table[k]).strip().lower() for k in sorted(table, key=int))

    @cached_property
    def _is_ct(self) -> bool:
        if self._modality is not None:
            return self._modality == "ct"
        if all(c == "ct" for c in self._channels):
            return True
        if all(_MRI_NAMES.fullmatch(c) for c in self._channels):
            return False
        raise InputError(
            f"{self.where}: channels {list(self._channels)} do not show the modality; give modality: ct, mri, ..."
        )

    def _names(self, folder: str) -> list[str]:
        """Return the cases of which any channel is there, so that reading names a channel that is missing."""
        pattern = re.compile(rf"(.+)_\d{{4}}{re.escape(self._ending)}")
        return sorted({match[1] for p in self._shown(folder) if (match := pattern.fullmatch(p.name))})

    def _shown(self, folder: str) -> list[Path]:
        return [p for p in (self.root / folder).glob(f"*{self._ending}") if p.name[0] != "."]

    def _group(self, name: str) -> str | None:
        pattern = self._group_pattern
        return None if pattern is None else first_group(pattern, name, option="group_pattern", where=self.where)

    @classmethod
    def recognise(cls, root: Path) -> dict[str, Any] | None:
        """A dataset.json beside imagesTr whose files end in _0000, or that lists its files under `dataset`."""
        file = root / "dataset.json"
        if not file.is_file():
            return None
        is_listed = "dataset" in read_json(file, where="nnunet_raw")
        return {"root": str(root)} if is_listed or any(root.glob("imagesTr/*_0000.*")) else None

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write Dataset999_Toy: six two-channel cases of 10x12x14, two per patient, and one labelled test case."""
        import numpy as np
        from inflate3d.data.raw.readers import write_nifti

        folder = root / "Dataset999_Toy"
        generator = np.random.default_rng(0)
        affine = np.diag([1.0, 1.0, 3.0, 1.0])
        for part, names in (("Tr", [f"p{i // 2}_scan{i % 2}" for i in range(6)]), ("Ts", ["p9_scan0"])):
            for sub in (f"images{part}", f"labels{part}"):
                (folder / sub).mkdir(parents=True, exist_ok=True)
            for name in names:
                mask = np.zeros((10, 12, 14), np.uint8)
                mask[2:5, 3:8, 3:8], mask[6:9, 3:8, 3:8] = 1, 2
                write_nifti(folder / f"labels{part}" / f"{name}.nii.gz", mask, affine)
                for channel, sign in enumerate((1, -1)):
                    image = (generator.normal(0, 1, mask.shape) + sign * 4.0 * mask).astype(np.float32)
                    write_nifti(folder / f"images{part}" / f"{name}_{channel:04d}.nii.gz", image, affine)
        labels = {"background": 0, "left": 1, "right": 2}
        content = {
            "channel_names": {"0": "T1", "1": "T2"},
            "labels": labels,
            "numTraining": 6,
            "file_ending": ".nii.gz",
        }
        (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
        return {"root": str(folder), "group_pattern": r"^(p\d+)_", "val_fraction": 0.3}
