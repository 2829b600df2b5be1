"""Formula shapes: a class is a random formula of solids, a case is that formula turned, varied, hollow or textured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from inflate3d.contracts import AbstractDataset, Case, DatasetCard, InputSpec, Intensity, RawSample
from inflate3d.data.formula.solids import TURNINGS
from inflate3d.errors import InputError, unknown_name
from inflate3d.seeds import generator
from inflate3d.targets import ClassTarget

RENDERINGS = ("binary", "textured", "mixed")


class FormulaShapes(AbstractDataset):
    """Volumes drawn from (seed, index): case 7 is the same whatever else is made. Nothing is read from disk.

    A formula joins and cuts one to four superquadrics, prisms, tori, cones and shells. Each case turns it, moves its
    numbers a little, and makes a quarter of them hollow. rendering: binary (255 inside), textured (a scan with noise,
    bias field and blur, in random contrast), or mixed, half and half. turns: any, or upright (about the z axis, and up
    to 15 degrees aslant), as things stand and scans lie.

    After FDSL (arXiv:2101.08515) and its volumes (arXiv:2603.23199).
    """

    base_card = DatasetCard(
        name="formula_shapes",
        media="volume",
        title="Shapes by formula",
        modality="mask",
        url="",
        licence="Apache-2.0",
        commercial_use=True,
        weights_may_be_published=True,
        citation="",
        input=InputSpec(("shape",), None, None, Intensity("window", (0.0, 255.0))),
    )

    def __init__(
        self,
        *,
        num_classes: int = 200,
        num_train: int = 20000,
        num_val: int = 1000,
        size: int = 32,
        rendering: str = "binary",
        turns: str = "any",
        seed: int = 0,
    ) -> None:
        """size: edge in voxels. num_classes: formulas; cases go through them in turn."""
        for name, value, least in (
            ("num_classes", num_classes, 2),
            ("num_train", num_train, 1),
            ("num_val", num_val, 1),
            ("size", size, 8),
        ):
            if value < least:
                raise InputError(f"formula_shapes: {name} is {value}; it must be at least {least}")
        if rendering not in RENDERINGS:
            raise unknown_name("rendering", rendering, RENDERINGS, where="formula_shapes")
        if turns not in TURNINGS:
            raise unknown_name("turns", turns, TURNINGS, where="formula_shapes")
        self.num_classes, self.counts = num_classes, {"train": num_train, "val": num_val}
        self.size, self.rendering, self.turns, self.seed = size, rendering, turns, seed

    @property
    def card(self) -> DatasetCard:
        """The card with its formulas."""
        digits = len(str(self.num_classes - 1))
        names = tuple(f"formula_{i:0{digits}d}" for i in range(self.num_classes))
        return replace(self.base_card, targets={"formula": ClassTarget(names)})

    def cases(self) -> list[Case]:
        """num_train and num_val cases: train_000000, ..., val_000000, ..."""
        return [Case(f"{split}_{i:06d}", split, i) for split, count in self.counts.items() for i in range(count)]  # type: ignore[arg-type]

    def read(self, case: Case) -> RawSample:
        """Draw the case."""
        import numpy as np
        from inflate3d.data.formula.rendering import scan, smooth_noise
        from inflate3d.data.formula.solids import draw_solid, occupancy, vary

        label = case.source % self.num_classes
        draw = generator(self.seed, "case", case.split, case.source)
        solid = vary(draw_solid(generator(self.seed, "formula", label)), draw)
        radius = self.size / 2 * draw.uniform(0.7, 1.0)
        middle = (self.size - 1) / 2 + draw.uniform(-1, 1, 3) * (self.size / 2 - radius)
        shape = (self.size,) * 3
        filled = np.zeros(shape, np.float32)
        turn = TURNINGS[self.turns](draw)
        part, box = occupancy(solid, shape, middle=middle, radius=radius, turn=turn)
        filled[box] = part
        is_textured = self.rendering == "textured" or (self.rendering == "mixed" and draw.random() < 0.5)
        if is_textured:
            inside, outside = draw.uniform(0, 1, 2)
            while abs(inside - outside) < 0.2:
                inside, outside = draw.uniform(0, 1, 2)
            texture = float(draw.uniform(0, 0.12)) * smooth_noise(shape, draw, cells=int(draw.integers(3, 9)))
            image = scan(outside + (inside - outside + texture) * filled, draw)
        else:
            image = (255 * (filled > 0.5)).astype(np.uint8)
        return RawSample(image=image[None], targets={"formula": label})

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write nothing: the cases are made on the fly."""
        return {"num_classes": 3, "num_train": 6, "num_val": 3, "size": 16}
