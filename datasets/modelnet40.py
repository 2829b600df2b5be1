"""ModelNet40: 12,311 CAD models of forty kinds of things, as OFF meshes; ModelNet10 in the same layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from inflate3d.contracts import AbstractDataset, Case, DatasetCard, InputSpec, Intensity, RawSample, Split
from inflate3d.data.raw.files import require_folder, visible
from inflate3d.data.raw.keys import case_keys
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.errors import InputError
from inflate3d.targets import ClassTarget

_CLASSES = (
    *("airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone", "cup", "curtain"),
    *("desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard", "lamp", "laptop", "mantel"),
    *("monitor", "night_stand", "person", "piano", "plant", "radio", "range_hood", "sink", "sofa", "stairs", "stool"),
    *("table", "tent", "toilet", "tv_stand", "vase", "wardrobe", "xbox"),
)


class ModelNet40(AbstractDataset):
    """CLASS/train/*.off and CLASS/test/*.off below root: ModelNet40, or ModelNet10, unpacked.

    Meshes become occupancy grids of `size` voxels an edge, filled where they enclose something; D is up. The classes
    are the folders that are there, so that ModelNet10 has ten. train is the official one but for a share that becomes
    val; test is the official one.
    Download: wget http://modelnet.cs.princeton.edu/ModelNet40.zip
    """

    base_card = DatasetCard(
        name="modelnet40",
        media="volume",
        title="ModelNet40: CAD models of things, voxelised",
        modality="mask",
        url="https://modelnet.cs.princeton.edu",
        licence="Provided for the convenience of academic research only; the CAD models' authors hold the copyright",
        commercial_use=False,
        weights_may_be_published=False,
        targets={"label": ClassTarget(_CLASSES)},
        citation="Wu et al., 3D ShapeNets: A Deep Representation for Volumetric Shapes, CVPR 2015, arXiv:1406.5670",
        input=InputSpec(("occupancy",), None, None, Intensity("window", (0.0, 1.0))),
    )

    def __init__(self, root: str | Path, *, size: int = 32, val_fraction: float = 0.1, seed: int = 0) -> None:
        """size: edge of the grids in voxels, a border of one voxel included."""
        if size < 8:
            raise InputError(f"modelnet40: size is {size}; it must be at least 8")
        self.root = require_folder(root, where="modelnet40", holds="CLASS/train/*.off and CLASS/test/*.off")
        found = sorted({path.parts[-3] for path in visible(self.root, "*/*/*.off")})
        if not found:
            raise InputError(
                f"modelnet40: {self.root} holds no CLASS/train/*.off; unpack the archive and give its folder"
            )
        if strange := [name for name in found if name not in _CLASSES]:
            raise InputError(f"modelnet40: {self.root} holds the folder {strange[0]!r}; known: {', '.join(_CLASSES)}")
        self.names, self.size = tuple(found), size
        self._rule = SplitRule(val_fraction, seed=seed)

    @property
    def card(self) -> DatasetCard:
        """The card with the classes that are there."""
        return replace(self.base_card, targets={"label": ClassTarget(self.names)})

    def cases(self) -> list[Case]:
        """Class by class, train and then test."""
        files: list[tuple[Path, Split | None]] = []
        for name in self.names:
            files += [(path, None) for path in visible(self.root, f"{name}/train/*.off")]
            files += [(path, "test") for path in visible(self.root, f"{name}/test/*.off")]
        keys = case_keys([f"{split or 'train'}_{path.stem}" for path, split in files], where="modelnet40")
        labels = [self.names.index(path.parts[-3]) for path, _ in files]
        own = [(key, label) for key, label, (_, split) in zip(keys, labels, files, strict=True) if split is None]
        dealt = self._rule.assign([key for key, _ in own], labels=[label for _, label in own])
        return [Case(key, split or dealt[key], path) for key, (path, split) in zip(keys, files, strict=True)]

    def read(self, case: Case) -> RawSample:
        """Return one grid (1, D, H, W) uint8, 0 or 1, and its class."""
        from inflate3d.data.raw.meshes import read_off, voxelised

        grid = voxelised(*read_off(case.source), self.size)
        return RawSample(image=grid[None], targets={"label": self.names.index(case.source.parts[-3])})

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write two classes of four boxes for training and one for testing; some have their counts beside OFF."""
        faces = "4 0 1 3 2\n4 4 6 7 5\n4 0 4 5 1\n4 2 3 7 6\n4 0 2 6 4\n4 1 5 7 3\n"
        for number, name in enumerate(("bookshelf", "table")):
            for i in range(5):
                folder = root / name / ("train" if i < 4 else "test")
                folder.mkdir(parents=True, exist_ok=True)
                edges = (10 + i, 8, 30) if number == 0 else (30, 20 + i, 8)
                corners = [(x, y, z) for z in (0, edges[2]) for y in (0, edges[1]) for x in (0, edges[0])]
                points = "".join(f"{x} {y} {z}\n" for x, y, z in corners)
                head = "OFF8 6 0\n" if i % 2 else "OFF\n8 6 0\n"
                (folder / f"{name}_{i:04d}.off").write_text(head + points + faces, encoding="ascii")
        return {"root": str(root), "size": 16, "val_fraction": 0.25}
