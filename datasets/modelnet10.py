"""ModelNet10 as 20^3 occupancy grids in one .npz: ten types of furniture, a quick check that a 3D net learns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from inflate3d.contracts import AbstractDataset, Case, DatasetCard, InputSpec, Intensity, RawSample, Split
from inflate3d.data.raw.files import require_file
from inflate3d.errors import InputError
from inflate3d.targets import ClassTarget

if TYPE_CHECKING:
    import numpy as np

_CLASSES = ("bathtub", "bed", "chair", "desk", "dresser", "monitor", "night_stand", "sofa", "table", "toilet")
_PARTS: dict[Split, str] = {"train": "train", "val": "dev"}


class ModelNet10(AbstractDataset):
    """modelnet20.npz: {train,dev,test}_voxels (N, 20, 20, 20, 1) uint8, 0 or 1, and {train,dev,test}_labels (N,) uint8.

    The first spatial axis is height, so D is up. train and dev together are the 3,991 models of the official training
    set, and dev becomes val; the labels of test are masked (255), so test is never used. root: the file, or its folder.
    """

    base_card = DatasetCard(
        name="modelnet10",
        media="volume",
        title="ModelNet10, voxelised to 20^3",
        modality="mask",
        url="https://modelnet.cs.princeton.edu",
        licence="Provided for the convenience of academic research only; the CAD models' authors hold the copyright",
        commercial_use=False,
        weights_may_be_published=False,
        targets={"label": ClassTarget(_CLASSES)},
        citation="Wu et al., 3D ShapeNets: A Deep Representation for Volumetric Shapes, CVPR 2015, arXiv:1406.5670",
        input=InputSpec(("occupancy",), None, None, Intensity("window", (0.0, 1.0))),
    )

    def __init__(self, root: str | Path) -> None:
        path = Path(root).expanduser()
        file = path if path.suffix == ".npz" else path / "modelnet20.npz"
        self.file = require_file(file, where="modelnet10", holds="modelnet20.npz")
        self._arrays: dict[str, np.ndarray] = {}

    @property
    def card(self) -> DatasetCard:
        """The card: the same for every copy of the file."""
        return self.base_card

    def cases(self) -> list[Case]:
        """Every labelled model in file order: train_00000, ..., dev_00000, ..."""
        counts = {split: len(self._array(f"{part}_labels")) for split, part in _PARTS.items()}
        return [Case(f"{_PARTS[s]}_{i:05d}", s, i) for s, count in counts.items() for i in range(count)]

    def read(self, case: Case) -> RawSample:
        """Return one grid (1, D, H, W) uint8, 0 or 1, and its class."""
        part = _PARTS[case.split]
        grid = self._array(f"{part}_voxels")[case.source]
        label = int(self._array(f"{part}_labels")[case.source])
        if grid.ndim != 4 or grid.shape[-1] != 1:
            raise InputError(f"{self.file.name} {case.key}: shape {grid.shape}; expected (D, H, W, 1)")
        if label >= len(_CLASSES):
            raise InputError(
                f"{self.file.name} {case.key}: label {label} (255 is masked); expected 0 to {len(_CLASSES) - 1}"
            )
        return RawSample(image=grid[None, ..., 0], targets={"label": label})

    def __getstate__(self) -> dict[str, Any]:
        # Each worker reads the arrays itself; sending them would cost more.
        return {**self.__dict__, "_arrays": {}}

    def _array(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            import numpy as np

            try:
                with np.load(self.file, allow_pickle=False) as archive:
                    self._arrays[name] = archive[name]
            except KeyError:
                raise InputError(
                    f"{self.file} has no array {name!r}; expected train_voxels, train_labels, dev_..."
                ) from None
            except Exception as error:
                raise InputError(f"{self.file} cannot be read ({error}); download it again") from error
        return self._arrays[name]

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write a modelnet20.npz with 20 training and 10 dev boxes of ten heights, and masked test labels."""
        import numpy as np

        arrays: dict[str, np.ndarray] = {}
        for part, count in (("train", 20), ("dev", 10), ("test", 5)):
            voxels = np.zeros((count, 20, 20, 20, 1), np.uint8)
            for i, grid in enumerate(voxels):
                grid[2 : 6 + i % 10, 5:15, 5:15] = 1
            labels = np.arange(count, dtype=np.uint8) % 10
            arrays |= {
                f"{part}_voxels": voxels,
                f"{part}_labels": labels if part != "test" else np.full_like(labels, 255),
            }
        root.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(root / "modelnet20.npz", **arrays)  # type: ignore[arg-type]
        return {"root": str(root)}
