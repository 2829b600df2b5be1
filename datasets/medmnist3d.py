"""MedMNIST3D: the six official .npz files (organ, nodule, adrenal, fracture, vessel, synapse) at 28^3 or 64^3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inflate3d.contracts import SPLITS, AbstractDataset, Case, DatasetCard, InputSpec, Intensity, RawSample
from inflate3d.data.raw.files import require_file
from inflate3d.errors import InputError, unknown_name
from inflate3d.sample import Spacing
from inflate3d.targets import ClassTarget

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class _Subset:
    """What the source states of one file. field_of_view_mm: the edge of the crop, if it is stated and the same for
    all.

    commercial_use: MedMNIST gives all six under CC BY 4.0; None if they come from data whose own terms are narrower
    (LiTS, RibFrac) or not stated (IntrA); check the terms before commercial use.
    """

    modality: str
    classes: tuple[str, ...]
    source: str
    commercial_use: bool | None
    field_of_view_mm: float | None = None


_ORGANS = (
    "liver",
    "kidney-right",
    "kidney-left",
    "femur-right",
    "femur-left",
    "bladder",
    "heart",
    "lung-right",
    "lung-left",
    "spleen",
    "pancreas",
)
_FRACTURES = tuple(f"{kind} rib fracture" for kind in ("buckle", "nondisplaced", "displaced"))
_SUBSETS: Mapping[str, _Subset] = {
    "organmnist3d": _Subset("ct", _ORGANS, "abdominal CT of LiTS, boxes of 11 organs", None),
    "nodulemnist3d": _Subset("ct", ("benign", "malignant"), "lung nodules of LIDC-IDRI, CT at 1 mm", True),
    "adrenalmnist3d": _Subset(
        "mask", ("normal", "hyperplasia"), "shapes of adrenal glands, Zhongshan Hospital", True, 64
    ),
    "fracturemnist3d": _Subset("ct", _FRACTURES, "CT of RibFrac", None, 64),
    "vesselmnist3d": _Subset("mask", ("vessel", "aneurysm"), "shapes of brain vessels, IntrA", None),
    "synapsemnist3d": _Subset(
        "em", ("inhibitory synapse", "excitatory synapse"), "rat brain, electron microscopy", True, 1.024e-3
    ),
}
_SPACINGS_MM = {("nodulemnist3d", 28): 1.0}


class MedMNIST3D(AbstractDataset):
    """One file of MedMNIST v2 / MedMNIST+: {train,val,test}_images (N, D, H, W) uint8 and _labels (N, 1), split
    officially.

    root: the folder of the .npz files, or one file. subset: "adrenalmnist3d", or "adrenal" for short. size: 28, or 64
    for the files named SUBSET_64.npz. The source states no anatomical orientation, so the card states none.
    Download: wget https://zenodo.org/records/10519652/files/adrenalmnist3d.npz, or adrenalmnist3d_64.npz, and so on.
    """

    base_card = DatasetCard(
        name="medmnist3d",
        media="volume",
        title="MedMNIST3D",
        modality="ct, mask or em",
        url="https://medmnist.com",
        licence="CC-BY-4.0",
        commercial_use=None,
        weights_may_be_published=True,
        citation="Yang et al., MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D biomedical image "
        "classification, Scientific Data 10:41, 2023, doi:10.1038/s41597-022-01721-8",
        input=InputSpec(),
    )

    def __init__(self, root: str | Path, *, subset: str, size: int = 28) -> None:
        self.subset = subset.lower() if subset.lower().endswith("mnist3d") else f"{subset.lower()}mnist3d"
        if self.subset not in _SUBSETS:
            raise unknown_name("subset", subset, _SUBSETS, where="medmnist3d")
        if size not in (28, 64):
            raise InputError(f"medmnist3d: size is {size}; the official files are 28 or 64 voxels wide")
        self.size = size
        name = f"{self.subset}.npz" if size == 28 else f"{self.subset}_{size}.npz"
        path = Path(root).expanduser()
        self.file = require_file(
            path if path.suffix == ".npz" else path / name, where="medmnist3d", holds=f"{name} (zenodo)"
        )
        self._arrays: dict[str, np.ndarray] = {}

    @property
    def card(self) -> DatasetCard:
        """The card of this subset, from what MedMNIST publishes about it."""
        facts = _SUBSETS[self.subset]
        return replace(
            self.base_card,
            name=self.subset,
            title=f"{self.subset}: {facts.source}",
            modality=facts.modality,
            targets={"label": ClassTarget(facts.classes)},
            commercial_use=facts.commercial_use,
            input=InputSpec((facts.modality,), self._spacing_mm, None, Intensity("window", (0.0, 255.0))),
        )

    def cases(self) -> list[Case]:
        """Every volume in file order: train_00000, ..., val_00000, ..., test_00000, ..."""
        counts = {split: len(self._array(f"{split}_labels")) for split in SPLITS}
        return [Case(f"{split}_{i:05d}", split, i) for split, count in counts.items() for i in range(count)]

    def read(self, case: Case) -> RawSample:
        """Return one volume (1, D, H, W) uint8 and its class."""
        image = self._array(f"{case.split}_images")[case.source]
        if image.shape != (self.size,) * 3:
            raise InputError(f"{self.file.name} {case.key}: shape {image.shape}; expected {(self.size,) * 3}")
        label = int(self._array(f"{case.split}_labels")[case.source].item())
        if not 0 <= label < len(_SUBSETS[self.subset].classes):
            raise InputError(
                f"{self.file.name} {case.key}: label {label}; expected 0 to {len(_SUBSETS[self.subset].classes) - 1}"
            )
        return RawSample(image=image[None], targets={"label": label}, spacing_mm=self._spacing_mm)

    def __getstate__(self) -> dict[str, Any]:
        # Each worker reads the arrays itself; sending them would cost more.
        return {**self.__dict__, "_arrays": {}}

    @property
    def _spacing_mm(self) -> Spacing | None:
        field_mm = _SUBSETS[self.subset].field_of_view_mm
        edge_mm = field_mm / self.size if field_mm else _SPACINGS_MM.get((self.subset, self.size))
        return (edge_mm,) * 3 if edge_mm else None

    def _array(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            import numpy as np

            try:
                with np.load(self.file, allow_pickle=False) as archive:
                    self._arrays[name] = archive[name]
            except KeyError:
                raise InputError(f"{self.file} has no array {name!r}; is it an official MedMNIST3D file?") from None
            except Exception as error:
                raise InputError(f"{self.file} cannot be read ({error}); download it again") from error
        return self._arrays[name]

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write an adrenalmnist3d.npz with 8 / 3 / 3 boxes whose length is their class."""
        import numpy as np

        arrays: dict[str, np.ndarray] = {}
        for split, count in zip(SPLITS, (8, 3, 3), strict=True):
            labels = np.arange(count, dtype=np.uint8)[:, None] % 2
            images = np.zeros((count, 28, 28, 28), np.uint8)
            for image, label in zip(images, labels[:, 0], strict=True):
                image[8 : 14 + 6 * label, 8:16, 8:16] = 255
            arrays |= {f"{split}_images": images, f"{split}_labels": labels}
        root.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(root / "adrenalmnist3d.npz", **arrays)  # type: ignore[arg-type]
        return {"root": str(root), "subset": "adrenal"}
