"""OpenMind: 114,000 head and neck MRI of 800 OpenNeuro studies, without labels; the technique is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inflate3d.contracts import DatasetCard, InputSpec, Intensity
from inflate3d.data.raw.files import require_folder, stem, visible
from inflate3d.data.raw.listed_volumes import ListedVolumes, Said
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.data.raw.tables import Row
from inflate3d.errors import InputError


class OpenMind(ListedVolumes):
    """OpenMind/ds000001/sub-01/[ses-1/]anat/sub-01_T1w.nii.gz; root: OpenMind, or the repository that holds it.

    The label is the technique, the last part of the file's name (T1w, T2w, FLAIR, ...): 23 of them. technique: only
    these, such as [T1w]. The masks in NAME__Data (defaced regions, anatomy) are not read. val takes whole subjects.
    Download, all or some studies: hf download AnonRes/OpenMind --repo-type dataset --include "OpenMind/ds00000*/*"
    --local-dir DIR
    """

    base_card = DatasetCard(
        name="openmind",
        media="volume",
        title="OpenMind: head and neck MRI for self-supervised learning",
        modality="mri",
        url="https://huggingface.co/datasets/AnonRes/OpenMind",
        licence="CC-BY-4.0",
        commercial_use=True,
        weights_may_be_published=True,
        citation="Wald et al., An OpenMind for 3D medical vision self-supervised learning, arXiv:2412.17041, 2024",
        input=InputSpec(("mri",), None, "RAS", Intensity("zscore")),
    )

    def __init__(
        self,
        root: str | Path,
        *,
        technique: Sequence[str] | None = None,
        spacing_mm: Sequence[float] | None = None,
        val_fraction: float = 0.01,
        val_count: int | None = None,
        split_file: str | None = None,
        seed: int = 0,
    ) -> None:
        folder = require_folder(root, where="openmind", holds="OpenMind/ds000001 and its like")
        folder = folder / "OpenMind" if (folder / "OpenMind").is_dir() else folder
        card = self.base_card
        super().__init__(
            folder,
            _rows(folder, technique, SplitRule(val_fraction, val_count, split_file, seed)),
            file=folder,
            said=Said(
                card.name, card.url, card.licence, card.citation, card.commercial_use, card.weights_may_be_published
            ),
            modality="mri",
            classes=None,
            units={},
            channels=None,
            orientation="RAS",
            spacing_mm=spacing_mm,
            window=None,
            rule=SplitRule(),
        )

    @property
    def _title(self) -> str:
        return self.base_card.title

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write two studies of two subjects with two techniques each, and a mask of a defaced region."""
        from inflate3d.data.raw.examples import boxes, write_image, write_mask

        for study in ("ds000030", "ds001486"):
            for i, subject in enumerate(("sub-01", "sub-02")):
                folder = root / "OpenMind" / study / subject / "ses-T1" / "anat"
                for technique, gain in (("T1w", 80), ("T2w", -80)):
                    name = f"{subject}_ses-T1_{technique}"
                    write_image(folder / f"{name}.nii.gz", boxes((1, 1)), seed=i, gain=gain)
                write_mask(folder / f"{subject}_ses-T1_T1w__Data" / "deface_mask.nii.gz", boxes((1,)))
        return {"root": str(root), "val_fraction": 0.25}


def _rows(folder: Path, technique: Sequence[str] | None, rule: SplitRule) -> list[Row]:
    files = [p.relative_to(folder) for p in visible(folder, "ds*/**/*.nii.gz")]
    files = [p for p in files if not any(part.endswith("__Data") for part in p.parts)]
    wanted = [p for p in files if technique is None or _technique(p) in technique]
    if not wanted:
        of = "" if technique is None else f" of {list(technique)}; there are {sorted({_technique(p) for p in files})}"
        raise InputError(f"openmind: {folder} holds no ds*/**/*.nii.gz{of}; expected OpenMind/ds000001 and its like")
    keys = ["-".join([*path.parts[:-1], stem(path)]) for path in wanted]
    groups = ["/".join(path.parts[:2]) for path in wanted]
    splits = rule.assign(keys, groups=groups)
    return [
        Row(0, {"image": str(p), "label": _technique(p), "group": group, "key": key, "split": splits[key]})
        for p, group, key in zip(wanted, groups, keys, strict=True)
    ]


def _technique(path: Path) -> str:
    return stem(path).rpartition("_")[2]
