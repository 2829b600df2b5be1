"""Formula motions: clips of what moves, turns and changes speed; a single frame tells nothing of how."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inflate3d.contracts import AbstractDataset, Case, DatasetCard, InputSpec, Intensity, RawSample
from inflate3d.data.formula.motions import CHANGES, DIRECTIONS, TURNS
from inflate3d.data.raw.files import require_folder
from inflate3d.errors import InputError
from inflate3d.seeds import generator
from inflate3d.targets import ClassTarget, ValueTarget

if TYPE_CHECKING:
    import numpy as np


class FormulaMotions(AbstractDataset):
    """Clips drawn from (seed, index), each frame coded by itself.

    Targets: `direction` (8 classes), `acceleration` (steady, faster, slower, reverse), `turn` (still, clockwise,
    anticlockwise) and `speed` (mean pixels a frame). Over all of them, each frame alone has one distribution: places
    and angles begin anywhere, and what leaves on one side comes in on the other.

    After Video Perlin Noise (WACV 2022) and arXiv:2410.24213.
    """

    base_card = DatasetCard(
        name="formula_motions",
        media="video",
        title="Motions by formula",
        modality="rgb",
        url="",
        licence="Apache-2.0",
        commercial_use=True,
        weights_may_be_published=True,
        citation="",
        targets={
            "direction": ClassTarget(DIRECTIONS),
            "acceleration": ClassTarget(CHANGES),
            "turn": ClassTarget(TURNS),
            "speed": ValueTarget("pixels a frame", low=0.0),
        },
        input=InputSpec(("red", "green", "blue"), intensity=Intensity("window", (0.0, 255.0))),
    )

    def __init__(
        self,
        *,
        num_train: int = 8000,
        num_val: int = 400,
        num_frames: int = 16,
        size: int = 64,
        photos: str | Path | None = None,
        pans: float = 0.5,
        seed: int = 0,
    ) -> None:
        """size: edge in pixels, even. photos: a folder of .jpg and .png whose crops the things show, half of them.

        The photos' licence goes with the clips: `weights_may_be_published` is then false.
        pans: the share of clips in which all of the scene moves; a net learns motion from these first.
        """
        for name, value, least in (
            ("num_train", num_train, 1),
            ("num_val", num_val, 1),
            ("num_frames", num_frames, 4),
            ("size", size, 32),
        ):
            if value < least:
                raise InputError(f"formula_motions: {name} is {value}; it must be at least {least}")
        if not 0 <= pans <= 1:
            raise InputError(f"formula_motions: pans is {pans}; it must be a share, 0 to 1")
        if size % 2:
            raise InputError(f"formula_motions: size is {size}; it must be even")
        self.counts = {"train": num_train, "val": num_val}
        self.num_frames, self.size, self.pans, self.seed = num_frames, size, pans, seed
        self.photo_files: list[Path] = []
        if photos is not None:
            folder = require_folder(photos, where="formula_motions", holds="photos that end in .jpg or .png")
            self.photo_files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
            if not self.photo_files:
                raise InputError(f"formula_motions: {folder} holds no .jpg and no .png")

    @property
    def card(self) -> DatasetCard:
        """The card; with photos it is as free as they are, which nobody knows here."""
        if not self.photo_files:
            return self.base_card
        return replace(self.base_card, licence="unknown", commercial_use=None, weights_may_be_published=False)

    def cases(self) -> list[Case]:
        """num_train and num_val cases: train_000000, ..., val_000000, ..."""
        return [Case(f"{split}_{i:06d}", split, i) for split, count in self.counts.items() for i in range(count)]  # type: ignore[arg-type]

    def read(self, case: Case) -> RawSample:
        """Draw the case."""
        from inflate3d.data.formula.motions import Motion, draw_clip
        from inflate3d.data.raw.videos import encode_video

        draw = generator(self.seed, "clip", case.split, case.source)
        direction, change, turn = (int(draw.integers(len(names))) for names in (DIRECTIONS, CHANGES, TURNS))
        motion = Motion(direction, change, turn, speed=float(draw.uniform(0.02, 0.06)) * self.size)
        is_pan = bool(draw.random() < self.pans)
        clip = draw_clip(motion, self.num_frames, self.size, draw, picture=self._photo(draw), is_pan=is_pan)
        targets = {"direction": direction, "acceleration": change, "turn": turn, "speed": round(motion.speed, 4)}
        return RawSample(video=encode_video(clip, fps=8, is_intra=True), targets=targets)

    def _photo(self, draw: np.random.Generator) -> np.ndarray | None:
        if not self.photo_files or draw.random() < 0.5:
            return None
        import numpy as np
        from PIL import Image

        with Image.open(self.photo_files[int(draw.integers(len(self.photo_files)))]) as photo:
            return np.asarray(photo.convert("RGB"))

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write nothing: the cases are made on the fly."""
        return {"num_train": 6, "num_val": 3, "num_frames": 8, "size": 32}
