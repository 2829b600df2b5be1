"""Who answers for raw files: a run's checkpoint, or published weights, each through the code that validation uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from inflate3d.contracts import AbstractTarget, DatasetCard, Features, InputSpec, Intensity, Prediction, medium_of
from inflate3d.contracts.card import UNSTATED_MEDIA
from inflate3d.data.samples.options import sample_options
from inflate3d.data.samples.seen import Seen
from inflate3d.errors import InputError
from inflate3d.models import create_model, create_segmenter
from inflate3d.models.input_contract import intensity_of
from inflate3d.models.publication.fetch import published_folder
from inflate3d.models.publication.heads import label_names_of, target_of
from inflate3d.models.publication.layout import CONFIG, PREFIX
from inflate3d.models.publication.schema import read_published_config
from inflate3d.sample import Batch
from inflate3d.training.assignment import placed_heads
from inflate3d.training.run.folder import CONFIG as RUN_CONFIG
from inflate3d.training.run.folder import read_run_config
from inflate3d.training.run.saved import choose_checkpoint, load_module
from inflate3d.training.windows import Windows

FEATURES = "features"
Answer = Prediction | Features


@dataclass(frozen=True)
class Answering:
    """What answers under one name: a head, or a net without one.

    target: what it tells; None: features. label_names: what the dataset's own label files hold of its names. seen: what
    its training volumes were like, where that is known.
    """

    dataset: str
    card: DatasetCard
    target: AbstractTarget | None
    task: str | None = None
    label_names: tuple[str, ...] = ()
    seen: Seen | None = None


class Answerer(Protocol):
    """A model with all that can answer of it, by name."""

    title: str
    precision: str
    """trainer.precision, under which it was validated."""

    @property
    def heads(self) -> Mapping[str, Answering]:
        """What can answer, by name."""

    def sample(self, head: str) -> dict[str, Any]:
        """Return what one sample of its dataset is (`data.datasets.<name>.sample`)."""

    def prepare(self, head: str, device: torch.device, *, features: bool) -> None:
        """Load what answers under this name; comes once, before the answers."""

    def answer(self, batch: Batch) -> Answer:
        """Return the answer, or features."""


def answerer_of(model: str, *, checkpoint: str = "best", cache_dir: str | None = None) -> Answerer:
    """Return who answers for a run folder, a published name, or a publication's folder. InputError if it is none."""
    folder = Path(model)
    if folder.is_dir() and (folder / CONFIG).is_file() and not (folder / RUN_CONFIG).is_file():
        return PublishedAnswerer(f"{PREFIX}{folder}")
    if not folder.is_dir() and published_folder(model, cache_dir) is not None:
        return PublishedAnswerer(model, cache_dir=cache_dir)
    return RunAnswerer(folder, checkpoint)


class RunAnswerer:
    """A run's checkpoint; needs no shards."""

    def __init__(self, run_folder: Path, checkpoint: str = "best") -> None:
        self.config = read_run_config(run_folder)
        self.checkpoint = choose_checkpoint(run_folder, checkpoint)
        self.title = f"{self.checkpoint.path.name} of {run_folder}"
        self.module = load_module(run_folder, str(self.checkpoint.path))
        placed = placed_heads(self.module.tasks)
        seen = {name: Seen.from_dict(told) for name, told in self.module.seen.items()}
        self.heads = {
            name: Answering(h.dataset, h.card, h.target, h.task, h.label_names, seen.get(h.dataset))
            for name, h in placed.items()
        }
        for dataset in self.module.tasks_of.keys() - {head.dataset for head in self.heads.values()}:
            self.heads[dataset] = Answering(dataset, self.module.cards[dataset], None, seen=seen.get(dataset))
        self.precision = str(self.config.get("trainer", {}).get("precision"))
        self.task: str | None = None
        self.features = False

    def sample(self, head: str) -> dict[str, Any]:
        """Return what the run's config says."""
        return self.config["data"]["datasets"][self.heads[head].dataset].get("sample") or {}

    def prepare(self, head: str, device: torch.device, *, features: bool) -> None:
        """Move the module."""
        self.task, self.features = self.heads[head].task, features
        self.module.to(device)

    def answer(self, batch: Batch) -> Answer:
        """Answer as validation does."""
        if self.features:
            return self.module.backbone(batch.image, domain=batch.dataset)
        return self.module.predict(batch, self.task)


class PublishedAnswerer:
    """Published weights, as one of their heads; without heads they give features alone."""

    precision = "32-true"

    def __init__(self, name: str, *, cache_dir: str | None = None) -> None:
        folder = published_folder(name, cache_dir)
        assert folder is not None, name
        self.title, self.name = name, f"{PREFIX}{folder}"
        config = read_published_config(folder)
        self.entries: dict[str, dict[str, Any]] = config.get("heads", {})
        own = config["input"]
        self.inputs = {name: entry.get("input", own) for name, entry in self.entries.items()}
        self.inputs = self.inputs or {own.get("domain", FEATURES): own}
        self.heads = {name: _answering(name, spec, self.entries.get(name, {})) for name, spec in self.inputs.items()}
        self.net: nn.Module = nn.Identity()
        self.target: AbstractTarget | None = None
        self.windows: Windows | None = None
        self.channels = 1

    def sample(self, head: str) -> dict[str, Any]:
        """Return what a sample was in training. InputError where that was not published, and nothing can stand in."""
        sample, card = self.inputs[head].get("sample"), self.heads[head].card
        known = medium_of(card).options.__dataclass_fields__  # type: ignore[attr-defined]
        options = {k: v for k, v in (sample or {}).items() if k in known}
        target = self.heads[head].target
        if sample is None and target is not None and target.per_voxel:
            raise InputError(f"{self.title}: input.sample is not stated for {head!r}; publish it from its run")
        try:
            sample_options(card, options)
        except InputError as fault:
            raise InputError(f"{self.title}: input.sample of {head!r}: {fault}; publish it from its run") from fault
        return options

    def prepare(self, head: str, device: torch.device, *, features: bool) -> None:
        """Load the net with this head, and the stem and statistics of its dataset."""
        entry = self.entries.get(head)
        if entry is None and not features:
            raise InputError(f"{self.title} was published without heads; ask for its features: --features")
        self.target = None if features else self.heads[head].target
        self.channels = len(self.inputs[head]["channels"])
        if self.target is None:
            domain = entry["dataset"] if entry is not None else None
            self.net = create_model(self.name, True, num_classes=0, norm_domain=domain)
        elif self.target.per_voxel:
            self.net = create_segmenter(self.name, True, head=head)
        else:
            self.net = create_model(self.name, True, head=head)
        if entry is not None and entry.get("window") and self.target is not None:
            depth, height, width = entry["window"]
            self.windows = Windows((depth, height, width), entry.get("window_overlap", 0.5))
        self.net.eval().to(device)

    def answer(self, batch: Batch) -> Answer:
        """Answer as the run's validation did, in windows where that had them."""
        if self.windows is None or self.windows.fits(batch):
            return self._of(batch)
        return self.windows.predict(batch, self._of)

    def _of(self, batch: Batch) -> Answer:
        image: Tensor = batch.image
        if image.shape[1] == 1 and self.channels > 1:
            image = image.expand(-1, self.channels, -1, -1, -1)
        logits = self.net(image)
        if self.target is None:
            depth, height, width = image.shape[2:]
            return Features([], logits, (depth, height, width))
        return self.target.answer(logits)


def _answering(name: str, spec: Mapping[str, Any], entry: Mapping[str, Any]) -> Answering:
    dataset = entry.get("dataset", name)
    seen = Seen.from_dict(spec["seen"]) if "seen" in spec else None
    return Answering(dataset, _card(dataset, spec), target_of(entry), entry.get("task"), label_names_of(entry), seen)


def _card(name: str, spec: Mapping[str, Any]) -> DatasetCard:
    """What must be known of a dataset to read its files, from a publication alone; without targets."""
    channels = tuple(spec["channels"])
    if len(set(channels)) == 1:
        channels = channels[:1]  # one grey channel, repeated for the net
    spacing = spec.get("spacing_mm")
    return DatasetCard(
        name=name,
        media=spec.get("media", UNSTATED_MEDIA),
        title=name,
        modality=spec.get("modality", "rgb"),
        url="",
        licence="unknown",
        commercial_use=None,
        weights_may_be_published=False,
        citation="",
        input=InputSpec(
            channels,
            None if spacing is None else (spacing[0], spacing[1], spacing[2]),
            spec.get("orientation"),
            intensity_of(spec) or Intensity(),
        ),
    )
