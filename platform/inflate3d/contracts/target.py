"""Targets: what is known of a sample, by name; each type owns its storage, dtype, missing value and collation.

A target type is one file in inflate3d/targets/, or a module behind the entry-point group `inflate3d.targets`; its
file's name is the type that cards and manifests state. No other file tests for a type by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from inflate3d.contracts.prediction import Prediction
from inflate3d.discover import find, name_of
from inflate3d.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True)
class AbstractTarget(ABC):
    """One thing that is known of each sample of a dataset, such as its class. Subclasses are frozen dataclasses.

    A value that is not known is None in a RawSample and in a shard, and the type's own missing value in a batch, which
    losses and metrics leave out.
    """

    per_voxel: ClassVar[bool] = False
    """An array on the grid of the image, cut and moved with it; otherwise a JSON value."""
    exclusive: ClassVar[bool] = False
    """A sample has one of `names`, by its index: what linear probes and nearest neighbours can tell apart."""

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in index order; () where there are none."""
        return ()

    @property
    def unannotated(self) -> tuple[int, ...]:
        """Indices of the names that were not looked for, so that nothing is said of them."""
        return ()

    @property
    def left_out(self) -> tuple[int, ...]:
        """Indices of the names whose voxels count for nothing: in no loss and no score."""
        return ()

    @property
    def answers(self) -> tuple[str, ...]:
        """What a head's logits are of, in order: the names."""
        return self.names

    @property
    def scored(self) -> dict[str, tuple[int, ...]]:
        """The labels, by index, of each thing that a mask is scored by, by its name: what was looked for."""
        return {name: (i,) for i, name in enumerate(self.names) if i and i not in self.unannotated}

    @property
    def written(self) -> dict[str, int]:
        """What a label map holds for each answer, an index of `names`."""
        return {name: i for i, name in enumerate(self.answers)}

    @abstractmethod
    def encode(self, value: Any) -> Any:
        """Return what a dataset read, checked, as a shard holds it: a JSON value, or uint8 (D, H, W) if per_voxel.

        `value` is never None. Raises InputError that says what it got and what is allowed.
        """

    @abstractmethod
    def check(self, stored: Any) -> None:
        """Raise InputError if a shard's value is not what `encode` gives; voxels need not be read."""

    @abstractmethod
    def tensor(self, stored: Any) -> Tensor:
        """Return a shard's value as one sample of a batch has it; None becomes the missing value."""

    @abstractmethod
    def summarise(self, stored: Sequence[Any]) -> dict[str, Any]:
        """Return what a manifest tells of many samples, from JSON values (per_voxel: from what `facts` gave)."""

    @abstractmethod
    def describe(self) -> str:
        """Return a few words: "3 classes: a, b, c"."""

    @abstractmethod
    def show(self, value: Tensor) -> str:
        """Return what a person reads of one sample's value, as `tensor` gives it."""

    def answer(self, logits: Tensor) -> Prediction:
        """Return what a head's logits say of the target, float32: probabilities, masks or values."""
        raise InputError(f"targets of type {self.type_name()} have no heads: its tasks predict by themselves")

    def label_map(self, answer: Tensor) -> Tensor:
        """Return the index among `names` of each voxel, (B, D, H, W) int64, of an answer (B, K, D, H, W)."""
        return answer.argmax(dim=1)

    def check_batch(self, value: Tensor) -> None:  # noqa: B027
        """Raise InputError if a batch's values are not what `tensor` gives."""

    def facts(self, array: np.ndarray) -> Any:
        """Return what a build measures of a per_voxel array, for the JSON member."""
        raise AssertionError(f"{type(self).__name__} is not per voxel")

    def tally(self, value: Tensor) -> Tensor:
        """Return what `constant_logits` must know of a batch's values, float64 (N,): sums over batches and ranks."""
        raise InputError(f"loss_weighting: constant: targets of type {self.type_name()} have no constant answer")

    def constant_logits(self, tally: Tensor, like: Tensor) -> Tensor:
        """Return the logits of the best constant answer, for a batch whose values are `like`.

        tally: the sum of `tally` over what was seen. `loss_weighting: constant` divides by the loss of this answer.
        """
        raise AssertionError("tally comes first")

    @classmethod
    def type_name(cls) -> str:
        """The name that cards state: that of the plug-in's module."""
        return name_of("targets", cls)

    def to_dict(self) -> dict[str, Any]:
        """Return the target as plain JSON values, its type among them."""
        return {"type": self.type_name(), **asdict(self)}

    @staticmethod
    def from_dict(data: Mapping[str, Any], *, where: str = "target") -> AbstractTarget:
        """Read one back; InputError begins with `where` and names an unknown type or key."""
        given = dict(data)
        cls = find("targets", str(given.pop("type", None)), where=where).load()
        known = {f.name for f in fields(cls)}
        if extra := sorted(set(given) - known):
            raise InputError(f"{where}: unknown keys {extra}; known: {sorted(known)}")
        try:
            target: AbstractTarget = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
        except (ValueError, TypeError) as fault:
            raise InputError(f"{where}: {fault}") from fault
        return target
