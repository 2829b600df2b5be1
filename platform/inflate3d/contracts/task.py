"""Tasks: each owns its step from batch to loss, its modules, its metrics and its answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from inflate3d.contracts.card import DatasetCard
from inflate3d.contracts.exhibit import Exhibit, Panel
from inflate3d.contracts.prediction import Features, Images, Prediction
from inflate3d.contracts.target import AbstractTarget
from inflate3d.errors import InputError
from inflate3d.sample import Batch, Triple

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torchmetrics import MetricCollection


class FeatureInfo(Protocol):
    """What a head must know of the encoder: one entry a level, shallow to deep."""

    num_pooled: int
    """Width of `Features.pooled`."""

    def channels(self) -> list[int]:
        """Channels of each level."""

    def reduction_dhw(self) -> list[Triple]:
        """How much smaller each level is than the input, along (D, H, W)."""


class Encoder(Protocol):
    """The shared backbone as a task sees it: one object for convolutional and token nets.

    Called twice in a step on the same view it computes once. Its parameters belong to the run, not to the task.
    """

    @property
    def feature_info(self) -> FeatureInfo:
        """What heads must know of it."""

    def __call__(self, view_BCDHW: torch.Tensor, *, domain: str) -> Features:
        """Return the features of a view (B, C, D, H, W). domain: the dataset whose stem and statistics serve it."""

    def frozen_copy(self) -> nn.Module:
        """Return a copy that is called as this one and never trained: an EMA teacher's start."""


class AbstractTask(ABC):
    """One objective over one or more datasets. Subclasses live one a file in tasks/ (or behind the entry-point group
    `inflate3d.tasks`) and know nothing of the trainer.

    The platform calls `build` once, registers `modules()`, and gives every one of them its share in every micro-batch
    (`idle`), so that all ranks and strategies see the same graph. Modules named after a dataset serve its batches
    alone; others take part in every step of the task.
    """

    media: ClassVar[tuple[str, ...]] = ()
    """The media that it takes; (): any."""
    target: ClassVar[type[AbstractTarget] | None] = None
    """The type of target that it needs; None: no labels."""
    main_metric: str | None = None
    """The metric, higher is better, whose mean over tasks is val/score. None: the task has no score, and its own loss
    on held-out data is logged in its place."""
    measured: ClassVar[tuple[str, ...]] = ("loss",)
    """What of `step` is logged on held-out data where there is no score: "loss", and what tells whether it learns."""

    def __init__(self, *, datasets: Sequence[str] | Mapping[str, str], loss_weight: float = 1.0) -> None:
        """datasets: names, or {name: target} where a dataset has several targets of the task's type."""
        if not datasets:
            raise InputError(f"{type(self).__name__}: datasets is empty; name at least one")
        if loss_weight <= 0:
            raise InputError(f"{type(self).__name__}: loss_weight is {loss_weight}; it must be above 0")
        self.datasets = list(datasets)
        self.target_names: dict[str, str] = dict(datasets) if isinstance(datasets, Mapping) else {}
        self.loss_weight = loss_weight
        self.cards: dict[str, DatasetCard] = {}

    def bind(self, cards: Mapping[str, DatasetCard]) -> None:
        """Take the cards of the task's datasets and choose each one's target.

        Raises InputError where a dataset has another medium, no target of the type, or several and none is named.
        """
        self.cards = {name: cards[name] for name in self.datasets}
        wanted = None if self.target is None else self.target.__name__
        for name, card in self.cards.items():
            given = self.target_names.get(name)
            found = fit_target(type(self).__name__, name, card, media=self.media, target=wanted, given=given)
            if found is not None:
                self.target_names[name] = found

    def target_of(self, dataset: str) -> AbstractTarget:
        """Return what the task's target on this dataset is; `bind` comes first."""
        return self.cards[dataset].targets[self.target_names[dataset]]

    def label_names(self, dataset: str) -> tuple[str, ...]:
        """Return what the indices in a dataset's own label files mean, by names of `target_of`."""
        return self.target_of(dataset).names

    def value(self, batch: Batch) -> torch.Tensor | None:
        """Return a batch's values of the task's target, as `target_of` names them; None where there is no target."""
        return batch.targets.get(self.target_names.get(batch.dataset, ""))

    @abstractmethod
    def build(self, encoder: Encoder) -> None:
        """Make the task's modules, from the encoder and `self.cards`; comes once, after `bind`."""

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """Return what is trained with the run, by name; the same objects each time."""

    def head_of(self, dataset: str) -> nn.Module | None:
        """Return the module that answers for a dataset: the one of its name. None where there is none."""
        return self.modules().get(dataset)

    def frozen_modules(self) -> dict[str, nn.Module]:
        """Return what is kept and saved but never trained, by name: an EMA teacher, a frozen 2D net."""
        return {}

    @abstractmethod
    def step(self, encoder: Encoder, batch: Batch, *, seed: int) -> dict[str, torch.Tensor]:
        """Return {"loss": scalar, ...}; further scalars are logged.

        seed: of this micro-batch and rank; draws are a function of it and of a name (inflate3d.seeds.mix), so that a
        run that goes on draws the same. The step may mask, call the encoder several times, and decode.
        """

    def idle(self, name: str, features: Features) -> torch.Tensor:
        """Return any output of modules()[name] on the smallest features; it enters the loss with weight 0.

        Called for what a micro-batch does not use. Override it for modules that are not called with Features.
        """
        output: torch.Tensor = self.modules()[name](features)
        return output

    def after_step(self, encoder: Encoder, *, step: int) -> None:  # noqa: B027
        """Do what follows an optimiser step, on every rank: move a teacher. step: optimiser steps done."""

    def predict(self, encoder: Encoder, batch: Batch) -> Prediction | Features:
        """Return the answer for a batch; without gradients, in evaluation mode. Default: the features."""
        return encoder(batch.image, domain=batch.dataset)

    def show(self, encoder: Encoder, batch: Batch, *, seed: int) -> list[Exhibit]:
        """Return what a person sees of a task without a target, one exhibit a sample; called as `predict` is.

        seed: as in `step`, for the same draws. Default: the image, and beside it an answer that is an image too.
        """
        answer = self.predict(encoder, batch)
        told = answer.tensor if isinstance(answer, Images) else None
        beside = [[] if told is None else [Panel("answer", told[i])] for i in range(len(batch))]
        return [
            Exhibit("", [Panel("image", image), *more], one_scale=True)
            for image, more in zip(batch.image, beside, strict=True)
        ]

    def metrics(self, dataset: str) -> MetricCollection | None:
        """Return fresh metrics for one dataset, updated with (prediction.tensor, target); None: there are none."""
        return None


def fit_target(
    task: str, dataset: str, card: DatasetCard, *, media: Sequence[str], target: str | None, given: str | None
) -> str | None:
    """Return the name of the target that a task takes of a dataset; None for a task that needs no labels.

    target: the name of the class that the task needs; given: the target's name, where a config says it. Raises
    InputError where the medium is another, no target is of the class, or several are and none is named.
    """
    if media and card.media not in media:
        raise InputError(f"{task} takes {' or '.join(media)}; dataset {dataset!r} holds {card.media}")
    if target is None:
        if given is not None:
            raise InputError(f"{task} needs no target, but is given {given!r}; name the dataset alone: [{dataset}]")
        return None
    fitting = [n for n, t in card.targets.items() if target in (c.__name__ for c in type(t).__mro__)]
    told = "; ".join(f"{n}: {t.describe()}" for n, t in card.targets.items()) or "none"
    if given is not None:
        card.target(given)
        if given not in fitting:
            raise InputError(f"{task} needs a {target}; {given!r} of dataset {dataset!r} is none. Its targets: {told}")
        return given
    if not fitting:
        raise InputError(f"{task} needs a {target}; targets of dataset {dataset!r}: {told}")
    if len(fitting) > 1:
        raise InputError(
            f"{task} needs a {target}; dataset {dataset!r} has {len(fitting)}: {', '.join(fitting)}. Name one: "
            f"datasets: {{{dataset}: {fitting[0]}}}"
        )
    return fitting[0]


class SupervisedTask(AbstractTask):
    """Encode, head, loss: a task whose head on each dataset answers for one target."""

    def __init__(self, *, datasets: Sequence[str] | Mapping[str, str], loss_weight: float = 1.0) -> None:
        super().__init__(datasets=datasets, loss_weight=loss_weight)
        self.heads: dict[str, nn.Module] = {}

    @abstractmethod
    def build_head(self, feature_info: FeatureInfo, target: Any) -> nn.Module:
        """Return the head for one dataset: forward(Features) -> logits."""

    @abstractmethod
    def loss(self, logits: torch.Tensor, value: torch.Tensor, target: Any) -> dict[str, torch.Tensor]:
        """Return {"loss": scalar, ...} of logits against a batch's values of `target`; missing values do not count."""

    @abstractmethod
    def metrics(self, dataset: str) -> MetricCollection:
        """Return fresh metrics for one dataset."""

    def build(self, encoder: Encoder) -> None:
        """Make a head for each dataset."""
        self.heads = {d: self.build_head(encoder.feature_info, self.target_of(d)) for d in self.datasets}

    def modules(self) -> dict[str, nn.Module]:
        """The heads, by dataset."""
        return self.heads

    def logits(self, encoder: Encoder, batch: Batch) -> torch.Tensor:
        """Return what the dataset's head makes of a batch's image."""
        logits: torch.Tensor = self.heads[batch.dataset](encoder(batch.image, domain=batch.dataset))
        return logits

    def value(self, batch: Batch) -> torch.Tensor:
        """Return the batch's values of the task's target."""
        return batch.targets[self.target_names[batch.dataset]]

    def step(self, encoder: Encoder, batch: Batch, *, seed: int) -> dict[str, torch.Tensor]:
        """Return the loss of the head's logits."""
        return self.loss(self.logits(encoder, batch), self.value(batch), self.target_of(batch.dataset))

    def predict(self, encoder: Encoder, batch: Batch) -> Prediction:
        """Return the head's answer, as people read the target."""
        return self.target_of(batch.dataset).answer(self.logits(encoder, batch))
