"""Zoos: 3D weights that others published, each net as a 2D twin that is laid along D as its weights were trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from inflate3d.contracts.card import InputSpec
from inflate3d.discover import plug_ins
from inflate3d.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class ZooNet:
    """One net of a zoo.

    plan: as InflationPlan.from_dict reads it. weights: where its publishers keep them ("https://host/file.pth",
    "hf-hub:org/name/file.pth"); "" where the zoo says so itself (AbstractZoo.place). parameters and reductions (of H
    and W, one a level) are what lists show. base: the 2D net of its architecture, which `platform transfer` compares it
    with. num_classes: of the classifier among its weights, 0 without one. input: where it is another than the zoo's.
    """

    plan: Mapping[str, Any]
    weights: str
    parameters: int
    base: str
    reductions: tuple[int, ...] = (2, 4, 8, 16, 32)
    in_chans: int = 3
    num_classes: int = 0
    input: InputSpec | None = None


class AbstractZoo(ABC):
    """Nets of one publisher, by name; users write "zoo/net", zoo being the plug-in's name. No torch at its import."""

    title: ClassVar[str]
    """What the weights are and what they saw."""
    licence: ClassVar[str]
    """SPDX identifier of the weights' licence, or of the code's where nothing else is stated."""
    trained_on: ClassVar[Mapping[str, Any] | None] = None
    """The card of the data as in a publication, where it binds users: name, title, url, licence, commercial_use,
    weights_may_be_published, citation."""
    citation: ClassVar[str]
    source: ClassVar[str]
    """Where the facts of this file were read."""
    input: ClassVar[InputSpec]
    media: ClassVar[str]
    time_padding: ClassVar[str] = "zeros"
    nets: ClassVar[Mapping[str, ZooNet]]
    refused: ClassVar[Mapping[str, str]] = {}
    """Nets of the publisher that folding cannot hold, with the reason."""

    @abstractmethod
    def twin(self, name: str) -> nn.Module:
        """Return the net in 2D with random weights; its state_dict has one key for each of the 3D weights.

        Either timm's contract (feature_info, forward_features, forward_head, forward_intermediates) or a plain trunk
        with a pool and a last Linear, as torchvision's nets are.
        """

    def convert(self, name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the published tensors under the twin's keys; kernels stay (O, I, kD, kH, kW), axes of size 1 too."""
        return tensors

    def place(self, name: str) -> str:
        """Return where the weights lie: an address, or a local path. InputError where a package is missing."""
        return self.nets[name].weights


def find_zoo(name: str) -> tuple[AbstractZoo, str] | None:
    """Return the zoo of "zoo/net" and the net's name; None for names that no zoo has.

    InputError for a net that its zoo refuses, with the reason.
    """
    prefix, _, net = name.partition("/")
    if net == "" or prefix not in plug_ins("zoos"):
        return None
    zoo = _opened(prefix)
    if net in zoo.refused:
        raise InputError(
            f"{name!r} cannot be held: {zoo.refused[net]}. Those of {prefix} that can: {', '.join(zoo.nets)}"
        )
    return (zoo, net) if net in zoo.nets else None


def zoo_names() -> dict[str, ZooNet]:
    """Return the nets of all zoos, by the names that create_model takes."""
    return {f"{prefix}/{net}": facts for prefix in plug_ins("zoos") for net, facts in _opened(prefix).nets.items()}


def _opened(prefix: str) -> AbstractZoo:
    zoo: AbstractZoo = plug_ins("zoos")[prefix].load()()
    return zoo
