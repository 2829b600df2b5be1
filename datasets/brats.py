"""BraTS: sub-regions of gliomas in MRI of four contrasts, releases 2018 to 2024."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inflate3d.contracts import DatasetCard, InputSpec, Intensity
from inflate3d.data.raw.files import visible
from inflate3d.data.raw.labelled_volumes import Files, LabelledVolumes, Labels, target_of
from inflate3d.errors import InputError, unknown_name

_CHANNELS = ("t1", "t1 contrast", "t2", "flair")
_CORE, _EDEMA, _ENHANCING, _CAVITY = "necrotic core", "edema", "enhancing tumor", "resection cavity"
# What the challenges score, the largest first: arXiv:2107.02314; of 2024 the cavity as well.
_REGIONS = {
    "whole tumor": (_EDEMA, _CORE, _ENHANCING),
    "tumor core": (_CORE, _ENHANCING),
    _ENHANCING: (_ENHANCING,),
    _CAVITY: (_CAVITY,),
}


@dataclass(frozen=True)
class _Release:
    """endings: of the files of a case, before .nii or .nii.gz: one a channel, in the order of _CHANNELS."""

    endings: tuple[str, ...]
    mask: str
    values: Mapping[str, int]


_FIRST = _Release(("_t1", "_t1ce", "_t2", "_flair"), "_seg", {_CORE: 1, _EDEMA: 2, _ENHANCING: 4})
_ENDINGS = ("-t1n", "-t1c", "-t2w", "-t2f")
_RELEASES: Mapping[str, _Release] = {
    **dict.fromkeys(("2018", "2019", "2020", "2021"), _FIRST),
    "2023": _Release(_ENDINGS, "-seg", {_CORE: 1, _EDEMA: 2, _ENHANCING: 3}),
    "2024": _Release(_ENDINGS, "-seg", {_CORE: 1, _EDEMA: 2, _ENHANCING: 3, _CAVITY: 4}),
}


class BraTS(LabelledVolumes):
    """A folder per case, anywhere below root, with a file per contrast and the segmentation.

    release: 2018 to 2021 have CASE_{t1,t1ce,t2,flair,seg}.nii.gz, where the enhancing tumor is 4, which becomes the
    third class; 2023 and 2024 have CASE-{t1n,t1c,t2w,t2f,seg}.nii.gz, where it is 3, and 4 is the resection cavity
    (2024). regions: tell what the challenges score, the whole tumor, its core and the enhancing part, each by itself,
    in place of the labels, which shards hold as ever. There is no official validation split; root is the training data,
    since a case without segmentation is rejected. To get it: register at https://www.synapse.org, join the challenge of
    the year (syn25829067 for 2021, syn51156910 for 2023), accept its terms, and download the training data.
    """

    base_card = DatasetCard(
        name="brats",
        media="volume",
        title="BraTS: brain tumor segmentation, adult glioma",
        modality="mri",
        url="https://www.synapse.org/brats",
        licence="unknown",
        commercial_use=None,
        weights_may_be_published=False,
        citation="Baid et al., The RSNA-ASNR-MICCAI BraTS 2021 Benchmark on Brain Tumor Segmentation and Radiogenomic "
        "Classification, arXiv:2107.02314, 2021; Menze et al., IEEE Transactions on Medical Imaging 34, 2015",
        targets=target_of(_FIRST.values),
        input=InputSpec(_CHANNELS, None, "RAS", Intensity("zscore")),
    )
    holds = "a folder per case with CASE_flair.nii.gz or CASE-t2f.nii.gz and its like"

    def __init__(
        self,
        root: str | Path,
        *,
        release: str = "2021",
        regions: bool = False,
        labels: Labels | None = None,
        spacing_mm: Sequence[float] | None = None,
        val_fraction: float = 0.2,
        val_count: int | None = None,
        split_file: str | None = None,
        seed: int = 0,
    ) -> None:
        if str(release) not in _RELEASES:
            raise unknown_name("release", str(release), _RELEASES, where="brats")
        if regions and labels is not None:
            raise InputError(
                "brats: labels makes classes, and regions are of the set's own labels; give one of the two"
            )
        super().__init__(
            root,
            labels=labels,
            spacing_mm=spacing_mm,
            val_fraction=val_fraction,
            val_count=val_count,
            split_file=split_file,
            seed=seed,
        )
        self._year = str(release)
        self._release, self._regions = _RELEASES[self._year], regions

    @property
    def card(self) -> DatasetCard:
        """The card of the release."""
        card = super().card
        if self._regions:
            own: Any = [{"name": n, "labels": s} for n, s in _REGIONS.items() if set(s) <= set(self._release.values)]
            card = card.restated({"mask": {"regions": own}}, where=self.where)
        return replace(card, name=f"brats{self._year}", title=f"BraTS {self._year}, adult glioma")

    def labels(self) -> Mapping[str, int]:
        """The regions of the release."""
        return self._release.values

    def found(self) -> list[Files]:
        """The cases by name; several scans of a patient (BraTS-GLI-00000-001) are a group."""
        release = self._release
        files = []
        for flair in visible(self.root, f"**/*{release.endings[-1]}.nii*"):
            match = re.fullmatch(rf"(.+){release.endings[-1]}(\.nii|\.nii\.gz)", flair.name)
            if match is None or flair.is_dir():
                continue
            place = str(flair.parent.relative_to(self.root) / match[1])
            images = tuple(f"{place}{ending}{match[2]}" for ending in release.endings)
            patient = re.fullmatch(r"(BraTS-[A-Z]+-\d+)-\d+", match[1])
            masks = ((f"{place}{release.mask}{match[2]}", None),)
            files.append(Files(match[1], images, masks, group=patient[1] if patient else None))
        return files

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write four cases of the release of 2021."""
        from inflate3d.data.raw.examples import boxes, write_image, write_mask

        for number in (0, 2, 3, 5):
            case = f"BraTS2021_{number:05d}"
            mask = boxes((1, 2, 4))
            for channel, ending in enumerate(_FIRST.endings):
                write_image(root / case / f"{case}{ending}.nii.gz", mask, seed=channel, gain=20 * (channel + 1))
            write_mask(root / case / f"{case}_seg.nii.gz", mask)
        return {"root": str(root), "release": "2021", "val_count": 1}
