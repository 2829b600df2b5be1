"""The contracts that plug-ins fulfil: what a dataset says of itself, and what a task does.

A dataset turns raw files into shards; training never sees its class, only the shards' manifest, which carries the card.
A task turns features into a loss, metrics and predictions. Plug-ins know the platform, the platform names no plug-in.
No torch is imported here at run time, so that listing datasets stays instant.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from inflate3d.errors import InputError
from inflate3d.sample import Batch, Spacing, Triple

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn
    from torchmetrics import MetricCollection

Kind = Literal["video_classification", "volume_segmentation", "volume_classification"]
KINDS: tuple[Kind, ...] = ("video_classification", "volume_segmentation", "volume_classification")
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


# ---------------------------------------------------------------------------------------------- what a dataset says


@dataclass(frozen=True)
class Intensity:
    """How stored voxel values become the floats that a net sees.

    mode "window": clip to `window` = (low, high), scale to 0..1, then (x - mean) / std per channel.
    mode "zscore": subtract the volume's own mean and divide by its own standard deviation, per channel.
    """

    mode: Literal["window", "zscore"] = "window"
    window: tuple[float, float] = (0.0, 255.0)
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)


@dataclass(frozen=True)
class InputSpec:
    """What the stored arrays hold: channels in order, voxel spacing (z, y, x), orientation and intensity.

    spacing_mm None: volumes keep their own spacing. orientation "RAS" means that W grows to the patient's Right,
    H to Anterior, D to Superior (nibabel's axis codes of (x, y, z) = (W, H, D)); None: no anatomy (video, voxel grids).
    """

    channels: tuple[str, ...] = ("image",)
    spacing_mm: Spacing | None = None
    orientation: str | None = None
    intensity: Intensity = field(default_factory=Intensity)


@dataclass(frozen=True)
class DatasetCard:
    """What people must know of a dataset before they train on it or publish what they trained.

    licence: SPDX identifier where there is one, else the words of the source. commercial_use: None means unknown.
    classes: names in index order; for segmentation index 0 is the background.
    """

    name: str
    kind: Kind
    title: str
    modality: str  # "rgb", "ct", "mri", "mask", ...: chooses the stem
    classes: tuple[str, ...]
    url: str
    licence: str
    commercial_use: bool | None
    weights_may_be_published: bool
    citation: str
    input: InputSpec = field(default_factory=InputSpec)

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DatasetCard:
        """Read a card back from JSON values; unknown keys are refused with an InputError."""
        known = {f.name for f in fields(cls)}
        if extra := sorted(set(data) - known):
            raise InputError(f"dataset card: unknown keys {extra}; a newer version wrote it? Known: {sorted(known)}")
        raw = dict(data)
        spec = dict(raw.pop("input", {}))
        intensity: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in dict(spec.pop("intensity", {})).items()
        }
        spec = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()}
        raw["classes"] = tuple(raw["classes"])
        return cls(**raw, input=InputSpec(**spec, intensity=Intensity(**intensity)))


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

    Volumes: image (C, D, H, W), in the orientation and spacing of the card, any of uint8, int16, float32; mask
    (D, H, W) uint8 for segmentation. Video: the compressed file's bytes and its suffix ("mp4"). label: class index.
    affine: 4x4, from (W, H, D) voxel indices to RAS+ millimetres (NIfTI's convention), where there is anatomy.
    """

    image: np.ndarray | None = None
    mask: np.ndarray | None = None
    video: bytes | None = None
    video_suffix: str = "mp4"
    label: int | None = None
    spacing_mm: Spacing | None = None
    affine: list[list[float]] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class AbstractDataset(ABC):
    """Raw files of one public layout, to be turned into shards by `platform shards build`.

    Subclasses live one a file in datasets/ (or behind the entry-point group `inflate3d.datasets`), import no torch at
    module level, check their arguments in the constructor (InputError names the path and the remedy) and read no data
    there beyond what `card` and `cases` need.
    """

    base_card: ClassVar[DatasetCard]
    """The card as far as the class alone knows it; classes may be empty until an instance has read the files."""

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
    @abstractmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write a tiny example of the raw layout under `root`; return the constructor's arguments that read it."""


# ------------------------------------------------------------------------------------------------- what a task does


class FeatureInfo(Protocol):
    """What a head must know of the backbone: one entry a level, shallow to deep."""

    num_pooled: int
    """Width of `Features.pooled`."""

    def channels(self) -> list[int]:
        """Channels of each level."""

    def reduction_dhw(self) -> list[Triple]:
        """How much smaller each level is than the input, along (D, H, W)."""


@dataclass
class Features:
    """What the backbone gives to a head.

    maps: one (B, C_l, D_l, H_l, W_l) a level, shallow to deep. pooled: (B, num_pooled), what timm's own classifier
    sees. size: (D, H, W) of the input.
    """

    maps: list[torch.Tensor]
    pooled: torch.Tensor
    size: Triple


@dataclass
class Prediction:
    """What a task answers for a batch: probabilities (B, K) or (B, K, D, H, W), float32, on the batch's device."""

    probabilities: torch.Tensor


class AbstractTask(ABC):
    """A loss, metrics and predictions over one or more datasets of one kind; each dataset has a head of its own.

    The platform calls `build_head` once a dataset, registers what it returns in `self.heads[dataset]`, and gives every
    head its share in every micro-batch. Subclasses live one a file in tasks/ (or behind the entry-point group
    `inflate3d.tasks`) and know nothing of the trainer.
    """

    kind: ClassVar[Kind]
    """The kind of dataset that it accepts."""
    main_metric: ClassVar[str]
    """The metric, higher is better, whose mean over tasks is val/score."""

    def __init__(self, *, datasets: Sequence[str], loss_weight: float = 1.0) -> None:
        if not datasets:
            raise InputError(f"{type(self).__name__}: datasets is empty; name at least one of kind {self.kind!r}")
        if loss_weight <= 0:
            raise InputError(f"{type(self).__name__}: loss_weight is {loss_weight}; it must be above 0")
        self.datasets = list(datasets)
        self.loss_weight = loss_weight
        self.cards: dict[str, DatasetCard] = {}
        self.heads: nn.ModuleDict | None = None

    @abstractmethod
    def build_head(self, feature_info: FeatureInfo, card: DatasetCard) -> nn.Module:
        """Return the head for one dataset: forward(Features) -> logits."""

    @abstractmethod
    def loss(self, features: Features, batch: Batch) -> dict[str, torch.Tensor]:
        """Return {"loss": scalar, ...}; further scalars are logged. The head is `self.heads[batch.dataset]`."""

    @abstractmethod
    def metrics(self, card: DatasetCard) -> MetricCollection:
        """Return fresh metrics for one dataset, updated with (probabilities, target) of `predict` and the batch."""

    @abstractmethod
    def predict(self, features: Features, batch: Batch) -> Prediction:
        """Return the prediction for a batch; without gradients, in evaluation mode."""

    def head(self, dataset: str) -> nn.Module:
        """Return the head of one dataset; building comes first."""
        assert self.heads is not None, "the platform registers heads before it calls a task"
        return self.heads[dataset]
