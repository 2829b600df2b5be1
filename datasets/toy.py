"""Toy data made on the fly and learnable in a minute: blobs with masks, shapes, a moving square, several targets."""

# T time, C channel, D H W voxels along z y x

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inflate3d.contracts import (
    AbstractDataset,
    AbstractTarget,
    Case,
    DatasetCard,
    InputSpec,
    Intensity,
    RawSample,
    Split,
)
from inflate3d.errors import InputError, unknown_name
from inflate3d.targets import ClassTarget, MaskTarget, ValueTarget

if TYPE_CHECKING:
    import numpy as np

_STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
_RGB = InputSpec(
    ("red", "green", "blue"), intensity=Intensity("window", (0.0, 255.0), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)


class Toy(AbstractDataset):
    """Cases drawn from (seed, split, index), so case 7 is the same whatever else is made. Nothing is read from
    disk.

    kind: what is made.
    volume_segmentation: a bright ball and a dimmer cube in noise, (1, size, size, size) with a mask.
    volume_classification: one of a ball, a cube and a cross, of random size and place.
    video_classification: a square moving left, right, up or down over `num_frames` frames; one frame is not enough.
    volume_targets: one shape in noise with three targets: its class, its mask, and its volume in millilitres.
    """

    base_card = DatasetCard(
        name="toy",
        media="volume",
        title="Toy data made on the fly",
        modality="ct, mask or rgb",
        url="",
        licence="Apache-2.0",
        commercial_use=True,
        weights_may_be_published=True,
        citation="",
    )

    def __init__(
        self,
        *,
        kind: str = "volume_segmentation",
        num_train: int = 64,
        num_val: int = 16,
        size: int = 24,
        num_frames: int = 16,
        seed: int = 0,
    ) -> None:
        if kind not in _MAKERS:
            raise unknown_name("kind", kind, _MAKERS, where="toy")
        if min(num_train, num_val) < 1:
            raise InputError(f"toy: num_train is {num_train}, num_val {num_val}; both must be at least 1")
        if size < 16 or size % 2 or num_frames < 4:
            raise InputError(
                f"toy: size is {size}, num_frames {num_frames}; size must be even and >= 16, num_frames >= 4"
            )
        self.kind = kind
        self.counts: dict[Split, int] = {"train": num_train, "val": num_val}
        self.size = size
        self.num_frames = num_frames
        self.seed = seed

    @property
    def card(self) -> DatasetCard:
        """The card of the chosen kind."""
        made = _MAKERS[self.kind]
        name = f"toy_{self.kind.removeprefix('volume_').partition('_')[0]}"
        facts: dict[str, Any] = {"media": made.media, "modality": made.modality, "targets": made.targets}
        return replace(self.base_card, name=name, title=f"Toy: {made.title}", input=made.input, **facts)

    def cases(self) -> list[Case]:
        """num_train and num_val cases: train_0000, ..., val_0000, ..."""
        return [Case(f"{split}_{i:04d}", split, i) for split, count in self.counts.items() for i in range(count)]

    def read(self, case: Case) -> RawSample:
        """Draw the case."""
        import numpy as np

        generator = np.random.default_rng([self.seed, list(self.counts).index(case.split), case.source])
        made = _MAKERS[self.kind]
        # Classes in turn, so every split has equal shares.
        return made.draw(self, case.source % made.turns, generator)

    def _draw_blobs(self, label: int, generator: np.random.Generator) -> RawSample:
        import numpy as np

        ball, cube = self._shape("ball", 1 / 6, 1 / 4, generator), self._shape("cube", 1 / 6, 1 / 4, generator)
        while (ball & cube).any():
            cube = self._shape("cube", 1 / 6, 1 / 4, generator)
        mask = (ball + 2 * cube).astype(np.uint8)
        image = generator.normal(0, 60, mask.shape) + np.array([0.0, 400.0, 200.0])[mask]
        affine = np.eye(4).tolist()
        return RawSample(
            image=image.astype(np.int16)[None], targets={"mask": mask}, spacing_mm=(1.0, 1.0, 1.0), affine=affine
        )

    def _draw_shape(self, label: int, generator: np.random.Generator) -> RawSample:
        shape = self._shape(_SHAPES[label], 1 / 4, 1 / 3, generator)
        return RawSample(image=shape[None].astype("uint8"), targets={"label": label})

    def _draw_all(self, label: int, generator: np.random.Generator) -> RawSample:
        import numpy as np

        shape = self._shape(_SHAPES[label], 1 / 6, 1 / 3, generator)
        image = generator.normal(0, 60, shape.shape) + 300 * shape
        targets = {"shape": label, "mask": shape.astype(np.uint8), "volume": float(shape.sum()) / 1000}
        return RawSample(image=image.astype(np.int16)[None], targets=targets, spacing_mm=(1.0, 1.0, 1.0))

    def _draw_motion(self, label: int, generator: np.random.Generator) -> RawSample:
        import numpy as np
        from inflate3d.data.raw.videos import encode_video

        step = np.array(list(_STEPS.values())[label])
        side, path = self.size // 4, self.size - self.size // 4
        start = generator.integers(0, path, 2)
        background = generator.integers(20, 80, (self.size, self.size, 3))
        colour = generator.integers(160, 255, 3)
        frames = np.empty((self.num_frames, self.size, self.size, 3), np.uint8)
        for t, frame in enumerate(frames):
            frame[:] = background
            y, x = (start + 2 * t * step) % path
            frame[y : y + side, x : x + side] = colour
        return RawSample(video=encode_video(frames, fps=8), targets={"label": label})

    def _shape(self, name: str, least: float, most: float, generator: np.random.Generator) -> np.ndarray:
        """Return the mask of one shape, (size, size, size) bool, fully inside; radius `least` to `most` of size."""
        import numpy as np

        radius = int(generator.integers(round(self.size * least), round(self.size * most) + 1))
        middle = generator.integers(radius, self.size - radius, 3)
        away = np.abs(np.indices((self.size,) * 3) - middle[:, None, None, None])
        if name == "ball":
            return (away**2).sum(0) <= radius**2
        if name == "cube":
            return away.max(0) <= radius * 0.8
        # A cross: three bars along the axes.
        return ((away <= radius / 4).sum(0) >= 2) & (away.max(0) <= radius)

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write nothing: the cases are made on the fly."""
        return {"kind": "volume_segmentation", "num_train": 6, "num_val": 3}


@dataclass(frozen=True)
class _Made:
    """turns: cases go through so many classes in turn."""

    media: str
    title: str
    modality: str
    targets: Mapping[str, AbstractTarget]
    turns: int
    input: InputSpec
    draw: Callable[[Toy, int, np.random.Generator], RawSample]


_SHAPES = ("ball", "cube", "cross")
_CT = InputSpec(("ct",), (1.0, 1.0, 1.0), "RAS", Intensity("window", (-200.0, 600.0)))
_MAKERS: Mapping[str, _Made] = {
    "volume_segmentation": _Made(
        "volume",
        "a bright ball and a dimmer cube",
        "ct",
        {"mask": MaskTarget(("background", "ball", "cube"))},
        3,
        _CT,
        Toy._draw_blobs,
    ),
    "volume_classification": _Made(
        "volume",
        "ball, cube or cross",
        "mask",
        {"label": ClassTarget(_SHAPES)},
        3,
        InputSpec(("occupancy",), None, None, Intensity("window", (0.0, 1.0))),
        Toy._draw_shape,
    ),
    "video_classification": _Made(
        "video", "a square that moves", "rgb", {"label": ClassTarget(tuple(_STEPS))}, 4, _RGB, Toy._draw_motion
    ),
    "volume_targets": _Made(
        "volume",
        "a shape with its class, mask and size",
        "ct",
        {
            "shape": ClassTarget(_SHAPES),
            "mask": MaskTarget(("background", "shape")),
            "volume": ValueTarget("ml", low=0.0),
        },
        3,
        _CT,
        Toy._draw_all,
    ),
}
