"""Your own NIfTI images in one folder and their masks in another, under the same names: segmentation cases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inflate3d.contracts import DatasetCard, InputSpec
from inflate3d.data.raw.files import require_folder, visible
from inflate3d.data.raw.listed_volumes import ListedVolumes, Said
from inflate3d.data.raw.modality import guess_modality
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.data.raw.tables import Row
from inflate3d.errors import InputError

_IMAGES = re.compile(r"ima?ge?s?|scans?|volumes?", re.IGNORECASE)
_MASKS = re.compile(r"masks?|labels?|seg\w*|annotations?", re.IGNORECASE)
_MOST_MASKS = 40


class MaskFolder(ListedVolumes):
    """root/images/CASE.nii.gz and root/masks/CASE.nii.gz; every case has both.

    images, masks: what the folders are called. classes: the names of the labels 0, 1, 2, ..., the background first.
    modality chooses the stem: ct, mri, ... Intensities: `window`; else ct measures it on up to 20 training volumes, and
    all others have a z-score. group_pattern: searched in a case's name; its first group keeps a patient in one split.
    """

    base_card = DatasetCard(
        name="mask_folder",
        media="volume",
        title="NIfTI images and masks in two folders",
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
        classes: str | Sequence[str],
        images: str = "images",
        masks: str = "masks",
        group_pattern: str | None = None,
        channels: str | Sequence[str] | None = None,
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
        folder = require_folder(root, where="mask_folder", holds=f"{images} and {masks}")
        found = {part: _files(folder, part) for part in (images, masks)}
        if not found[images] or (odd := sorted(found[images] ^ found[masks])):
            lone = f"{odd[0]} is in one of {images} and {masks} alone" if found[images] else f"{images} holds no NIfTI"
            raise InputError(f"mask_folder: {folder}: {lone}; each image needs a mask of its name")
        super().__init__(
            folder,
            [_row(file, images, masks, group_pattern) for file in sorted(found[images])],
            file=folder,
            said=Said(name or folder.name, url, licence, citation, commercial_use, weights_may_be_published),
            modality=modality,
            classes=classes,
            units={},
            channels=channels,
            orientation="RAS",
            spacing_mm=spacing_mm,
            window=window,
            rule=SplitRule(val_fraction, val_count, split_file, seed),
        )

    @classmethod
    def recognise(cls, root: Path) -> dict[str, Any] | None:
        """Two folders of NIfTI called as images and masks are, with names in common; classes by up to 40 masks."""
        parts = sorted(p.name for p in root.iterdir() if p.is_dir())
        images, masks = (next(filter(like.fullmatch, parts), None) for like in (_IMAGES, _MASKS))
        if images is None or masks is None or not (files := sorted(_files(root, images) & _files(root, masks))):
            return None
        some = files[:: -(-len(files) // _MOST_MASKS)]
        classes = ["background", *(f"label_{n + 1}" for n in range(_highest([root / masks / file for file in some])))]
        modality = guess_modality([root / images / file for file in files])
        return {"root": str(root), "images": images, "masks": masks, "modality": modality, "classes": classes}

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write six CT-like volumes with two boxes each, of three patients."""
        from inflate3d.data.raw.examples import boxes, write_image, write_mask

        for i in range(6):
            mask = boxes((1, 2), shift=i % 2)
            write_image(root / "images" / f"p{i // 2}_scan{i % 2}.nii.gz", mask, seed=i)
            write_mask(root / "masks" / f"p{i // 2}_scan{i % 2}.nii.gz", mask)
        classes = ["background", "left", "right"]
        return {"root": str(root), "modality": "mri", "classes": classes, "group_pattern": r"^(p\d+)_"}


def _files(root: Path, part: str) -> set[str]:
    """Return the NIfTI files of a folder, by their names."""
    return {p.name for p in visible(root / part, "*.nii*") if p.name.lower().endswith((".nii", ".nii.gz"))}


def _row(file: str, images: str, masks: str, group_pattern: str | None) -> Row:
    row = {"image": f"{images}/{file}", "mask": f"{masks}/{file}"}
    if group_pattern is None:
        return Row(0, row)
    if not (match := re.search(group_pattern, file)) or not match.groups():
        raise InputError(f"mask_folder: group_pattern {group_pattern!r} finds no (group) in {file!r}")
    return Row(0, {**row, "group": match[1]})


def _highest(files: Sequence[Path]) -> int:
    """Return the highest label of these masks."""
    from inflate3d.data.raw.readers import read_volume

    return max(int(read_volume(file, orientation=None, is_mask=True).array.max()) for file in files)
