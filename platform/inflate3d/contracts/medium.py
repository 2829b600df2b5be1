"""Media: what one sample is (a volume, a video): its stored members, options, decoding, and how a person sees it.

A medium is one file in inflate3d/media/, or a module behind the entry-point group `inflate3d.media`; its file's name is
what cards state as `media`. No other file tests for a medium by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from inflate3d.contracts.card import DatasetCard, InputSpec
from inflate3d.contracts.dataset import RawSample
from inflate3d.discover import find
from inflate3d.errors import InputError
from inflate3d.sample import Sample, Spacing, Triple

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True)
class Plane:
    """One picture that a person is shown of an image (C, D, H, W): the slice at `index` along an axis of D, H, W.

    index None: the brightest voxels along the axis. aspect: height over width of a pixel. is_colour: channels are red,
    green and blue, and rows grow downwards, as in a frame; else the first channel, rows growing upwards.
    """

    caption: str
    axis: int
    index: int | None
    aspect: float = 1.0
    is_colour: bool = False

    def of(self, image_CDHW: np.ndarray) -> np.ndarray:
        """Return (H, W), or (3, H, W) in colour."""
        array = image_CDHW[:3] if self.is_colour else image_CDHW[:1]
        array = array.max(self.axis + 1) if self.index is None else array.take(self.index, axis=self.axis + 1)
        if not self.is_colour:
            return array[0]
        return array if len(array) == 3 else array[:1].repeat(3, axis=0)

    def of_mask(self, mask_DHW: np.ndarray) -> np.ndarray:
        """Return the same slice of a label map, (H, W)."""
        assert self.index is not None, "a maximum has no slice"
        return mask_DHW.take(self.index, axis=self.axis)


class SampleOptions(Protocol):
    """What `data.datasets.<name>.sample` says: a frozen dataclass that checks itself (InputError)."""

    @property
    def input_size(self) -> Triple | None:
        """(D, H, W) that the net sees in training; None where only the shards know."""

    @property
    def window(self) -> Triple | None:
        """(D, H, W) of the windows in which evaluation answers for whole samples; None: samples go through whole."""


class Stage(Protocol):
    """What turns a sample's decoded members into a Sample; a pure function of its arguments."""

    def __call__(self, key: str, members: Mapping[str, Any], seed: int, out: Tensor | None = None) -> Sample:
        """Return the sample; its image lies in `out` if the last thing done to it can be done there.

        Raises InputError for members that cannot be used.
        """


class AbstractMedium(ABC):
    """One kind of data; an object without state. A person sees a sample by `planes`, and files by `suffixes`."""

    options: ClassVar[type]
    """The dataclass of `data.datasets.<name>.sample` (see SampleOptions)."""
    suffixes: ClassVar[tuple[str, ...]]
    """Endings of raw files that hold one sample, or one channel of it; lower case, with the dot."""
    byte_members: ClassVar[Mapping[str, str]] = {}
    """Members that are kept as bytes: suffix in a shard, without the dot, to the name they are decoded under."""
    mirror_axes: ClassVar[str] = "DHW"
    """Axes along which a mirror image is a sample too."""
    array_members: ClassVar[tuple[str, ...]] = ()
    """Members that are arrays, besides those of per_voxel targets: NAME.npy, or NAME.b2nd in chunks."""
    fields: ClassVar[tuple[str, ...]] = ()
    """What a mapping of foreign tars may read from a JSON member."""
    input: ClassVar[InputSpec] = InputSpec()
    """What foreign tars are taken to hold where their card does not say."""

    @abstractmethod
    def encode(self, raw: RawSample, card: DatasetCard) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the members (arrays by name, bytes by suffix) and what the JSON member says of them, checked.

        The facts hold at least "shape" (C, D, H, W), "spacing_mm" and "affine". Raises InputError.
        """

    @abstractmethod
    def check(self, members: Mapping[str, Any], record: Mapping[str, Any], card: DatasetCard) -> None:
        """Raise InputError if a shard's decoded members are not what the card promises; voxels are not read."""

    @abstractmethod
    def stage(
        self, options: Any, card: DatasetCard, *, training: bool, augment: Any = None, where: str = "data"
    ) -> Stage:
        """Return what makes samples: cut, decoded, augmented (in training only) and normalised."""

    @abstractmethod
    def files_of(self, files: Sequence[Path], card: DatasetCard) -> list[tuple[str, tuple[Path, ...]]]:
        """Return the cases among raw files as (key, files), by name."""

    def has_folders(self, folder: Path) -> bool:
        """Whether a folder, or one below it, is a sample as a whole (a DICOM series)."""
        return False

    def folders_of(self, folder: Path) -> list[tuple[str, tuple[Path, ...]]]:
        """Return the cases that are folders at or below one, as (key, files), by name; the log names what is none."""
        return []

    @abstractmethod
    def read(self, files: Sequence[Path], card: DatasetCard, *, where: str) -> RawSample:
        """Read one case from its files, without targets. InputError names the file and the fault."""

    @abstractmethod
    def planes(
        self,
        image_CDHW: np.ndarray,
        count: int,
        *,
        spacing_mm: Spacing,
        mask_DHW: np.ndarray | None = None,
        maxima: bool = True,
    ) -> list[Plane]:
        """Return at most `count` pictures of an image, no two the same; slices that show most of the mask, where there
        is one. maxima: the brightest voxels along an axis may be among them, which reads the whole image.
        """

    @abstractmethod
    def raw_image(self, raw: RawSample, count: int) -> np.ndarray:
        """Return what a raw sample looks like, (C, D, H, W), for a preview; of a video at most `count` frames."""

    def encoding(self, values: Any, *, where: str) -> dict[str, Any]:
        """Return how samples are encoded anew (a config's `build: {encode: ...}`), checked and with its defaults.

        Raises InputError where the medium has no such thing.
        """
        raise InputError(f"{where}: samples are stored as they are; there is nothing to encode anew. Leave it out")

    def reencode(self, raw: RawSample, encoding: Mapping[str, Any]) -> RawSample:
        """Return the sample encoded anew, by what `encoding` gave."""
        raise AssertionError(f"{type(self).__name__} has no encodings")

    def suffix_of(self, name: str) -> str | None:
        """Return the longest of `suffixes` that a file's name ends in; None if there is none."""
        found: Iterable[str] = (s for s in self.suffixes if name.lower().endswith(s))
        return max(found, key=len, default=None)


@cache
def medium_named(name: str) -> AbstractMedium:
    """Return the medium of this name, one for the process. InputError with close names if none is installed."""
    medium: AbstractMedium = find("media", name).load()()
    return medium


def medium_of(card: DatasetCard) -> AbstractMedium:
    """Return the medium of a card's samples. InputError with close names if none of that name is installed."""
    return medium_named(card.media)
