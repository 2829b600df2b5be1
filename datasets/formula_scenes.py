"""Formula scenes: 8 to 20 solids and organ shapes in a volume, with labels, in two contrasts that share no rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inflate3d.contracts import AbstractDataset, Case, DatasetCard, InputSpec, Intensity, RawSample
from inflate3d.data.formula.solids import TURNINGS
from inflate3d.data.raw.files import require_folder, stem
from inflate3d.errors import InputError, unknown_name
from inflate3d.seeds import generator
from inflate3d.targets import MaskTarget, VoxelValueTarget

if TYPE_CHECKING:
    import numpy as np

_ORGAN_VOXELS = 48  # of the longest edge that an organ of the bank keeps


class FormulaScenes(AbstractDataset):
    """Volumes drawn from (seed, index). The image and the target `contrast` show one scene as two scanners would.

    Each object is one of `num_solids` formulas or, with a bank, an organ: turned, stretched, bent, a tenth hollow.
    Intensities belong to objects and not to classes, so that only shape tells what a thing is. Bias field, blur, noise
    and partial volume are drawn for each contrast. mask: the class of what lies on top.

    After anatomix (arXiv:2411.02372).
    """

    base_card = DatasetCard(
        name="formula_scenes",
        media="volume",
        title="Scenes by formula",
        modality="mri",
        url="",
        licence="Apache-2.0",
        commercial_use=True,
        weights_may_be_published=True,
        citation="",
        input=InputSpec(("contrast",), (1.0, 1.0, 1.0), None, Intensity("window", (0.0, 255.0))),
    )

    def __init__(
        self,
        *,
        num_train: int = 4000,
        num_val: int = 200,
        size: int = 48,
        num_solids: int = 12,
        organs: str | Path | None = None,
        turns: str = "any",
        modality: str = "mri",
        seed: int = 0,
    ) -> None:
        """size: edge in voxels. organs: a folder of masks, a NIfTI file each; what is above 0 is the organ.

        turns: any, or upright (about the z axis, and up to 15 degrees off it), of which a net learns sooner what a
        thing is. modality: the stem that the images go through.
        """
        for name, value, least in (
            ("num_solids", num_solids, 2),
            ("num_train", num_train, 1),
            ("num_val", num_val, 1),
            ("size", size, 16),
        ):
            if value < least:
                raise InputError(f"formula_scenes: {name} is {value}; it must be at least {least}")
        if turns not in TURNINGS:
            raise unknown_name("turns", turns, TURNINGS, where="formula_scenes")
        self.counts, self.turns = {"train": num_train, "val": num_val}, turns
        self.size, self.num_solids, self.modality, self.seed = size, num_solids, modality, seed
        self.organ_files: list[Path] = []
        if organs is not None:
            folder = require_folder(organs, where="formula_scenes", holds="masks that end in .nii.gz")
            self.organ_files = sorted(folder.glob("*.nii.gz"))
            if not self.organ_files:
                raise InputError(f"formula_scenes: {folder} holds no file that ends in .nii.gz; give a folder of masks")
        if num_solids + len(self.organ_files) > 250:
            raise InputError(
                f"formula_scenes: {num_solids} solids and {len(self.organ_files)} organs; at most 250 together"
            )
        self._forms: list[np.ndarray] | None = None

    @property
    def card(self) -> DatasetCard:
        """The card with the classes."""
        solids = (f"solid_{i:02d}" for i in range(self.num_solids))
        names = ("background", *solids, *(stem(file) for file in self.organ_files))
        targets = {"mask": MaskTarget(names), "contrast": VoxelValueTarget()}
        return replace(self.base_card, targets=targets, modality=self.modality)

    def cases(self) -> list[Case]:
        """num_train and num_val cases: train_000000, ..., val_000000, ..."""
        return [Case(f"{split}_{i:06d}", split, i) for split, count in self.counts.items() for i in range(count)]  # type: ignore[arg-type]

    def read(self, case: Case) -> RawSample:
        """Draw the case."""
        from inflate3d.data.formula.scenes import draw_scene, render

        shape = (self.size,) * 3
        draw = generator(self.seed, "scene", case.split, case.source)
        scene = draw_scene(self._load_forms(), shape, draw, draw_turn=TURNINGS[self.turns])
        image, other = (
            render(scene, generator(self.seed, "contrast", which, case.split, case.source)) for which in ("a", "b")
        )
        return RawSample(image=image[None], targets={"mask": scene.labels, "contrast": other})

    def _load_forms(self) -> list[np.ndarray]:
        if self._forms is None:
            from inflate3d.data.formula.scenes import form_of_organ, form_of_solid
            from inflate3d.data.formula.solids import draw_solid

            edge = self.size + 16  # a cell is smaller than a voxel, for the largest objects too
            solids = [draw_solid(generator(self.seed, "solid", i)) for i in range(self.num_solids)]
            self._forms = [form_of_solid(solid, edge) for solid in solids]
            self._forms += [form_of_organ(_read_organ(file), edge) for file in self.organ_files]
        return self._forms

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write a bank of one organ."""
        import numpy as np
        from inflate3d.data.raw.readers import write_nifti

        (root / "organs").mkdir(parents=True, exist_ok=True)
        bean = np.zeros((12, 12, 12), np.uint8)
        bean[2:10, 3:9, 2:6] = bean[2:5, 3:9, 2:10] = 1
        write_nifti(root / "organs" / "bean.nii.gz", bean)
        return {"num_train": 4, "num_val": 2, "size": 24, "num_solids": 3, "organs": str(root / "organs")}


def _read_organ(file: Path) -> np.ndarray:
    """Return what a mask holds, cut to its box and to at most _ORGAN_VOXELS an edge, (D, H, W) bool."""
    import numpy as np
    from inflate3d.data.raw.readers import read_volume

    mask = read_volume(file, is_mask=True).array[0] > 0
    if not mask.any():
        raise InputError(f"{file}: holds no voxel above 0; leave it out of the bank")
    places = np.argwhere(mask)
    cut = mask[tuple(slice(a, b + 1) for a, b in zip(places.min(0), places.max(0), strict=True))]
    step = -(-max(cut.shape) // _ORGAN_VOXELS)
    return cut[::step, ::step, ::step]
