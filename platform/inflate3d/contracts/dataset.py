"""Datasets: raw files of one layout, listed as cases and read one by one, to be turned into shards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from inflate3d.contracts.card import DatasetCard
from inflate3d.sample import Spacing

if TYPE_CHECKING:
    import numpy as np

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Case:
    """One raw case, listed but not yet read. `source` is for the dataset alone and must pickle.

    key: letters, digits, '_' and '-' only (a dot would end a WebDataset key). group: cases of one group (a patient, a
    scene) never fall into two splits.
    """

    key: str
    split: Split
    source: Any
    group: str | None = None


@dataclass
class RawSample:
    """One case as it goes into a shard.

    Volumes: image (C, D, H, W), in the orientation and spacing of the card, any of uint8, int16, float32. Video: the
    compressed file's bytes and its suffix ("mp4"). targets: the value of each of the card's targets, by name; one that
    is None or left out is not known. affine: 4x4, from (W, H, D) voxel indices to RAS+ millimetres (NIfTI's
    convention), where there is anatomy. extra: further JSON values to keep. noticed: (kind, text) of each fact that is
    no error, but that a person should know: the build reports them.
    """

    image: np.ndarray | None = None
    video: bytes | None = None
    video_suffix: str = "mp4"
    targets: dict[str, Any] = field(default_factory=dict)
    spacing_mm: Spacing | None = None
    affine: list[list[float]] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    noticed: tuple[tuple[str, str], ...] = ()


class AbstractDataset(ABC):
    """Raw files of one public layout, to be turned into shards by `platform shards build`.

    Subclasses live one a file in datasets/ (or behind the entry-point group `inflate3d.datasets`), import no torch at
    module level, check their arguments in the constructor (InputError names the path and the remedy) and read no data
    there beyond what `card` and `cases` need.
    """

    base_card: ClassVar[DatasetCard]
    """The card as far as the class alone knows it; targets may be empty until an instance has read the files."""

    @property
    @abstractmethod
    def card(self) -> DatasetCard:
        """The full card of this instance."""

    @abstractmethod
    def cases(self) -> list[Case]:
        """Every case with its split, in a stable order that does not depend on the file system."""

    @abstractmethod
    def read(self, case: Case) -> RawSample:
        """Read one case. Raises InputError for a broken case: the build lists it as rejected, with the reason."""

    @classmethod
    def recognise(cls, root: Path) -> dict[str, Any] | None:
        """Return the constructor's arguments that read a folder which plainly has this layout; None for any other.

        `platform finetune` asks every dataset, so no two may claim one folder. Names of files tell, and the voxels of a
        few where `modality` is to be guessed. The default recognises nothing: a set that is asked for by its name.
        """
        return None

    @classmethod
    @abstractmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write a tiny example of the raw layout under `root`; return the constructor's arguments that read it."""
