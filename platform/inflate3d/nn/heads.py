"""Heads: what turns features into logits, and says by itself how it is published and rebuilt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from inflate3d.contracts import FeatureInfo, Features
from inflate3d.discover import find, name_of
from inflate3d.errors import InputError


class Head(nn.Module, ABC):
    """Built as Head(feature_info, **description), where the description is plain JSON values.

    A type of head is one file in inflate3d/heads/, or a module behind the entry-point group `inflate3d.heads`; its
    file's name is the type that a publication states. Nothing else tests for a type.
    """

    last_layer: ClassVar[str]
    """The prefix, in a state_dict, of the layer that knows the outputs."""
    classifier: ClassVar[str] = ""
    """The prefix of the one linear layer on pooled features that the head is in evaluation; "": it is more than that.

    Such a layer takes the place of the net's own classifier where published weights are loaded.
    """

    @abstractmethod
    def forward(self, features: Features) -> Tensor:
        """Return the logits."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what `rebuild` needs, as plain JSON values; "num_classes" where there may be another number."""

    @classmethod
    def rebuild(cls, description: Mapping[str, Any], feature_info: FeatureInfo) -> Head:
        """Return a fresh head of this description. InputError or TypeError where it describes none."""
        return cls(feature_info, **description)  # type: ignore[call-arg]

    @classmethod
    def type_name(cls) -> str:
        """The name that publications state. InputError for a class that is no plug-in."""
        return name_of("heads", cls)


def head_type(name: str, *, where: str) -> type[Head]:
    """Return the class of a published type of head. InputError that says what is installed where it is not."""
    try:
        return cast(type[Head], find("heads", name, where=where).load())
    except InputError as fault:
        raise InputError(f"{fault}. Install the package that has it (entry-point group inflate3d.heads)") from fault
