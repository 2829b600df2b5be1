"""ACDC: both ventricles and the myocardium at end diastole and end systole of 150 cine MRI, and the diagnosis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inflate3d.contracts import AbstractTarget, DatasetCard, InputSpec, Intensity, Split
from inflate3d.data.raw.files import visible
from inflate3d.data.raw.labelled_volumes import Files, LabelledVolumes, numbered, target_of
from inflate3d.data.raw.text import read_lines
from inflate3d.errors import InputError, unknown_name
from inflate3d.targets import ClassTarget

_LABELS = numbered("right ventricle", "myocardium", "left ventricle")
_DIAGNOSES = ("NOR", "MINF", "DCM", "HCM", "RV")
_TARGETS = {**target_of(_LABELS), "diagnosis": ClassTarget(_DIAGNOSES)}
_PARTS: dict[str, Split | None] = {"training": None, "testing": "test"}


class ACDC(LabelledVolumes):
    """{training,testing}/patient001/{Info.cfg, patient001_frame01.nii.gz, patient001_frame01_gt.nii.gz}; root: above.

    Two cases a patient: the frames ED and ES of Info.cfg. Targets: the mask, and the diagnosis (normal, infarction,
    dilated or hypertrophic cardiomyopathy, abnormal right ventricle). testing becomes the test split; val is taken from
    training by patient. All frames of patient001_4d.nii.gz can be read by nifti_folder with frames: cases. Download:
    https://humanheart-project.creatis.insa-lyon.fr/database/ (collection ACDC), then unpack into one folder.
    """

    base_card = DatasetCard(
        name="acdc",
        media="volume",
        title="ACDC: automated cardiac diagnosis challenge",
        modality="mri",
        url="https://www.creatis.insa-lyon.fr/Challenge/acdc/databases.html",
        licence="CC-BY-NC-SA-4.0",
        commercial_use=False,
        weights_may_be_published=True,
        citation="Bernard et al., Deep Learning Techniques for Automatic MRI Cardiac Multi-structures Segmentation and "
        "Diagnosis, IEEE Transactions on Medical Imaging 37, 2018, doi:10.1109/TMI.2018.2837502",
        targets=_TARGETS,
        input=InputSpec(("mri",), None, "RAS", Intensity("zscore")),
    )
    label_values = _LABELS
    holds = "training/patient001 and testing/patient101 and their like"

    def other_targets(self) -> Mapping[str, AbstractTarget]:
        """The diagnosis of the patient."""
        return {"diagnosis": _TARGETS["diagnosis"]}

    def found(self) -> list[Files]:
        """End diastole and end systole of each patient, training first."""
        folders = [(p, split) for part, split in _PARTS.items() for p in visible(self.root, f"{part}/patient[0-9]*")]
        return [files for folder, split in folders if folder.is_dir() for files in self._of_patient(folder, split)]

    def _of_patient(self, folder: Path, split: Split | None) -> list[Files]:
        file = folder / "Info.cfg"
        if not file.is_file():
            raise InputError(f"acdc: {folder} holds no Info.cfg, which names its frames and diagnosis; complete it")
        pairs = (text.partition(":") for _, text in read_lines(file))
        info = {name.strip(): value.strip() for name, _, value in pairs}
        if info.get("Group") not in _DIAGNOSES:
            raise unknown_name("Group", str(info.get("Group")), _DIAGNOSES, where=str(file))
        files = []
        for phase in ("ED", "ES"):
            if not info.get(phase, "").isdigit():
                raise InputError(f"{file}: {phase} is {info.get(phase)!r}; expected the number of a frame")
            place = f"{folder.relative_to(self.root)}/{folder.name}_frame{int(info[phase]):02d}"
            values = {"diagnosis": info["Group"]}
            name = f"{folder.name}_{phase}"
            files.append(Files(name, (f"{place}.nii.gz",), ((f"{place}_gt.nii.gz", None),), split, folder.name, values))
        return files

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write three training patients and a test patient."""
        from inflate3d.data.raw.examples import boxes, write_image, write_mask

        for number, part in ((1, "training"), (2, "training"), (3, "training"), (101, "testing")):
            name = f"patient{number:03d}"
            for frame in (1, 12):
                mask = boxes((1, 2, 3))
                write_image(root / part / name / f"{name}_frame{frame:02d}.nii.gz", mask, seed=number + frame)
                write_mask(root / part / name / f"{name}_frame{frame:02d}_gt.nii.gz", mask)
            info = f"ED: 1\nES: 12\nGroup: {_DIAGNOSES[number % 5]}\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"
            (root / part / name / "Info.cfg").write_text(info, encoding="utf-8")
        return {"root": str(root), "val_fraction": 0.34}
