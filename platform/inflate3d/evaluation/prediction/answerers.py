"""Who answers for raw files: a run's checkpoint, or published weights, each through the code that validation uses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from inflate3d.contracts import DatasetCard, InputSpec, Intensity
from inflate3d.data.samples.sample_options import OPTIONS
from inflate3d.errors import InputError
from inflate3d.models import create_model, create_segmenter
from inflate3d.models.input_contract import intensity_of
from inflate3d.models.publication.fetch import published_folder
from inflate3d.models.publication.layout import CONFIG, PREFIX
from inflate3d.models.publication.schema import read_published_config
from inflate3d.nn import sliding_window
from inflate3d.sample import Batch
from inflate3d.training.run.folder import CONFIG as RUN_CONFIG
from inflate3d.training.run.folder import read_run_config
from inflate3d.training.run.saved import choose_checkpoint, load_module

FEATURES = "features"


class Answerer(Protocol):
    """A model with the cards of the datasets that it can answer as."""

    title: str
    cards: Mapping[str, DatasetCard]
    precision: str
    """trainer.precision, under which it was validated."""

    def sample(self, dataset: str) -> dict[str, Any]:
        """Return what one sample of a dataset is (`data.datasets.<name>.sample`)."""

    def prepare(self, dataset: str, device: torch.device, *, features: bool) -> None:
        """Load what answers as this dataset; comes once, before the answers."""

    def answer(self, batch: Batch) -> Tensor:
        """Return probabilities (B, K) or (B, K, D, H, W), or pooled features (B, F)."""


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
        self.cards: Mapping[str, DatasetCard] = self.module.cards
        self.precision = str(self.config.get("trainer", {}).get("precision"))
        self.features = False

    def sample(self, dataset: str) -> dict[str, Any]:
        """Return what the run's config says."""
        return self.config["data"]["datasets"][dataset].get("sample") or {}

    def prepare(self, dataset: str, device: torch.device, *, features: bool) -> None:
        """Move the module; `dataset` is named by each batch."""
        self.features = features
        self.module.to(device)

    def answer(self, batch: Batch) -> Tensor:
        """Answer as validation does."""
        if self.features:
            return self.module.backbone(batch.image, domain=batch.dataset).pooled
        batch.task = self.module.task_of[batch.dataset]
        return self.module.predict(batch).probabilities


class PublishedAnswerer:
    """Published weights, as one of their heads; without heads they give features alone."""

    precision = "32-true"

    def __init__(self, name: str, *, cache_dir: str | None = None) -> None:
        folder = published_folder(name, cache_dir)
        assert folder is not None, name
        self.title, self.name = name, f"{PREFIX}{folder}"
        config = read_published_config(folder)
        self.heads: dict[str, dict[str, Any]] = config.get("heads", {})
        self.inputs: dict[str, dict[str, Any]] = {n: h.get("input", config["input"]) for n, h in self.heads.items()}
        if not self.heads:
            self.inputs = {config["input"].get("domain", FEATURES): config["input"]}
        self.cards: Mapping[str, DatasetCard] = {
            n: _card(n, spec, self.heads.get(n, {})) for n, spec in self.inputs.items()
        }
        self.net: nn.Module = nn.Identity()
        self.window: Any = None

    def sample(self, dataset: str) -> dict[str, Any]:
        """Return what a sample was in training. InputError where that was not published."""
        sample, kind = self.inputs[dataset].get("sample"), self.cards[dataset].kind
        if sample is None and kind != "volume_classification":
            raise InputError(
                f"{self.title}: input.sample is not stated, so that {kind} cannot be prepared; publish it from its run"
            )
        return {k: v for k, v in (sample or {}).items() if k in OPTIONS[kind].__dataclass_fields__}

    def prepare(self, dataset: str, device: torch.device, *, features: bool) -> None:
        """Load the net with this dataset's stem, statistics and head."""
        entry = self.heads.get(dataset)
        if entry is None and not features:
            raise InputError(f"{self.title} was published without heads; ask for its features: --features")
        if features:
            domain = dataset if self.heads else None
            self.net = create_model(self.name, True, num_classes=0, norm_domain=domain)
        elif entry is not None and entry["type"] == "unet":
            segmenter = create_segmenter(self.name, True, head=dataset)
            self.net, self.window, self.overlap = segmenter, segmenter.window, segmenter.window_overlap
        else:
            self.net = create_model(self.name, True, head=dataset)
        self.features = features
        self.net.eval().to(device)

    def answer(self, batch: Batch) -> Tensor:
        """Answer as the run's validation did: volumes to be segmented in sliding windows."""
        image = batch.image
        wanted = len(self.inputs[batch.dataset]["channels"])
        if image.shape[1] == 1 and wanted > 1:
            image = image.expand(-1, wanted, -1, -1, -1)
        if self.features:
            return self.net(image)
        if self.window is None:
            return self.net(image).float().softmax(dim=1)

        def of_windows(part: Tensor) -> Tensor:
            return self.net(part).float().softmax(dim=1)

        return sliding_window(image, of_windows, window=self.window, overlap=self.overlap)


def _card(name: str, spec: Mapping[str, Any], head: Mapping[str, Any]) -> DatasetCard:
    """What must be known of a dataset to read its files, from a publication alone."""
    channels = tuple(spec["channels"])
    if len(set(channels)) == 1:
        channels = channels[:1]  # one grey channel, repeated for the net
    spacing = spec.get("spacing_mm")
    return DatasetCard(
        name=name,
        kind=head.get("kind") or spec.get("kind", "volume_classification"),
        title=name,
        modality=spec.get("modality", "rgb"),
        classes=tuple(head.get("classes", ("unknown", "unknown"))),
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
